"""One node of an ONNX graph as handlers see it: operands, and attributes wherever the opset puts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from core.intake.onnx.proto import tensor
from core.intake.onnx.values import Known, NotPerImage, Unsupported, Value
from core.intake.refusals import invalid


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """operands: the values of its inputs, None where one is left out. label: its name, for people and for layers."""

    operator: str
    label: str
    opset: int
    operands: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, index: int) -> Value:
        value = self.optional(index)
        if value is None:
            raise Unsupported(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Value | None:
        return self.operands[index] if index < len(self.operands) else None

    def known(self, index: int) -> Known | None:
        """An input that says how to compute. Raises NotPerImage where it is itself computed from the image."""
        value = self.optional(index)
        if value is not None and not isinstance(value, Known):
            raise NotPerImage(f"its input {index} is computed from the image")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def integers(self, name: str, index: int | None = None) -> tuple[int, ...] | None:
        """A list of numbers that older opsets have as attribute `name` and newer ones as input `index`."""
        if name in self.attributes:
            given = self.attributes[name]
            return tuple(given) if isinstance(given, (list, tuple)) else (given,)
        value = self.known(index) if index is not None else None
        return value.integers() if value is not None else None

    def number(self, name: str, index: int) -> float | None:
        """A number that is an attribute or an input; None where it is neither."""
        if name in self.attributes:
            return self.attributes[name]
        value = self.known(index)
        if value is None or value.one.numel() == 0:
            return None
        found = value.scalar()
        if found is None:
            raise Unsupported(f"{name} is not a single number")
        return found


def read_attributes(proto: onnx.NodeProto, label: str) -> dict[str, Any]:
    """Attributes as Python numbers, strings, tensors (`Known`) and lists of the first two."""
    kinds = onnx.AttributeProto
    found: dict[str, Any] = {}
    for one in proto.attribute:
        if one.type == kinds.INT:
            found[one.name] = one.i
        elif one.type == kinds.FLOAT:
            found[one.name] = one.f
        elif one.type == kinds.STRING:
            found[one.name] = one.s.decode("utf-8", "replace")
        elif one.type == kinds.INTS:
            found[one.name] = list(one.ints)
        elif one.type == kinds.FLOATS:
            found[one.name] = list(one.floats)
        elif one.type == kinds.TENSOR:
            found[one.name] = Known.of(tensor(one.t, f"Attribute {one.name!r} of node {label!r}"))
        elif one.type != kinds.STRINGS:
            raise invalid(f"Attribute {one.name[:80]!r} of node {label!r} has a type that is not read.")
    return found
