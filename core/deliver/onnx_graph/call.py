"""One call of the network's graph, as a rule that emits ONNX sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from core.deliver.onnx_graph.builder import GraphBuilder
from core.network import TensorMeta


class Uncovered(Exception):
    """Nothing here says how to emit a call; `is_fault` where a rule should have known and failed."""

    def __init__(self, node: Node, reason: str = "no rule", *, is_fault: bool = False) -> None:
        super().__init__(f"{node.name} ({node.target}): {reason}")
        self.is_fault = is_fault


@dataclass(frozen=True)
class Live:
    """A tensor that is only known when the network runs: its name in the ONNX graph."""

    name: str


@dataclass(frozen=True)
class Size:
    """A size that is only known when the network runs: the name of an int64 tensor of one element."""

    name: str


# What a node of the graph stands for: a live tensor or size, one that is known now, or several values.
Value = Live | Size | Tensor | int | tuple


@dataclass(frozen=True)
class Call:
    """A call with its arguments by schema name.

    raw: as the graph has them (nodes). values: the same with every node replaced by its `Value`.
    """

    node: Node
    builder: GraphBuilder
    raw: Mapping[str, Any]
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def given(self, name: str) -> bool:
        return self.values.get(name) is not None

    def uncovered(self, reason: str) -> Uncovered:
        return Uncovered(self.node, reason)

    def require(self, condition: bool, reason: str) -> None:
        if not condition:
            raise self.uncovered(reason)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> str:
        """The ONNX name of a tensor or scalar argument, converted to `dtype` if that is given and another one."""
        return self.operand(self.values[name], self.raw[name], dtype)

    def operand(self, value: Any, raw: Any, dtype: torch.dtype | None = None) -> str:
        if isinstance(value, Tensor):
            return self.builder.tensor(value if dtype is None else value.to(dtype), _constant_name(raw))
        if isinstance(value, Live):
            if dtype is None or raw.meta["value"].dtype == dtype:
                return value.name
            return self.cast(value.name, dtype)
        if isinstance(value, (bool, int, float)):
            return self.builder.scalar(value, dtype or torch.float32)
        if isinstance(value, Size) and dtype is not None:
            return value.name if dtype is torch.int64 else self.cast(value.name, dtype)
        raise self.uncovered(f"an operand of type {type(value).__name__}")

    def cast(self, name: str, dtype: torch.dtype) -> str:
        element_type = self.builder.element_type(dtype)
        self.require(element_type is not None, f"elements of type {dtype}")
        return self.builder.add("Cast", name, to=element_type)

    def constant(self, name: str) -> Tensor:
        """An argument that must be known now."""
        value = self.values[name]
        self.require(isinstance(value, Tensor), f"{name} is computed while the network runs")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor argument at batch 1."""
        return tuple(self.raw[name].meta["value"].shape)

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def axis(self, name: str, of: str = "self") -> int:
        """An axis argument, counted from the front."""
        return self.values[name] % max(1, self.rank(of))

    def axes(self, name: str, of: str = "self") -> list[int]:
        """Several axes, counted from the front; all of them where the call names none."""
        value, rank = self.values[name], self.rank(of)
        if value is None or (isinstance(value, Sequence) and not value):
            return list(range(rank))
        return [axis % rank for axis in ([value] if isinstance(value, int) else value)]

    @property
    def result(self) -> TensorMeta:
        return self.node.meta["value"]


def _constant_name(raw: Any) -> str:
    return (raw.target if raw.op == "get_attr" else raw.name) if isinstance(raw, Node) else "constant"
