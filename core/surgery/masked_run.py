"""Runs of a graph in float64, node by node: as it is, or blind to the removed channels (the masked reference).

Blind means that whatever contracts over removed positions sees zeros there, on one of its operands, and that a statistic
over the surviving positions is taken of those alone and put back in their places. Every literal of the graph is used as
it was; a rewritten one never.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from core.analysis.context import Read, Subset
from core.analysis.schema import bind
from core.analysis.trace import Trace
from core.analysis.values import Labels, Value

_NARROW = (torch.float16, torch.bfloat16, torch.float32)


class Run:
    """Evaluates a graph node by node, dropping each value after its last reader. Every floating value is float64."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.values: dict[Node, Any] = {}
        self.tensors = dict(tensors)
        self._inputs = iter(inputs)
        self._last_use: dict[Node, list[Node]] = {}
        last = {}
        for node in graph.nodes:
            for argument in node.all_input_nodes:
                last[argument] = node
        for argument, reader in last.items():
            self._last_use.setdefault(reader, []).append(argument)

    def step(self, node: Node) -> Any:
        """Compute one node; raises what its operator raises."""
        if node.op == "placeholder":
            self.values[node] = _widened(next(self._inputs).clone())
        elif node.op == "get_attr":
            self.values[node] = self.tensors[node.target]
        elif node.op == "output":
            return None
        else:
            self.values[node] = _widened(self.call(node))
        return self.values[node]

    def call(self, node: Node) -> Any:
        """The result of one call on the present values."""
        args, kwargs = map_arg((node.args, node.kwargs), self.value)
        return node.target(*_wide_literals(args), **_wide_literals(kwargs))

    def value(self, node: Node) -> Any:
        """What a call reads. Stored tensors are widened only here, so that no network is held twice."""
        return _widened(self.values[node])

    def release(self, node: Node) -> None:
        """Drop what nobody reads after `node`."""
        for argument in self._last_use.get(node, ()):
            del self.values[argument]
        if not node.users:
            self.values.pop(node, None)


class MaskedRun(Run):
    """The reference: `kept` (bool per label) says which positions of the labelled axes in `trace` are there."""

    def __init__(
        self, graph: Graph, tensors: Mapping[str, Tensor], inputs: tuple[Tensor, ...], trace: Trace, kept: np.ndarray
    ) -> None:
        super().__init__(graph, tensors, inputs)
        self._kept = kept
        self._reads = {
            name: tuple(read for read in reads if not kept[read.labels].all()) for name, reads in trace.reads.items()
        }
        self._subsets = {
            name: subset
            for name, subset in trace.subsets.items()
            if not all(kept[read.labels].all() for read in subset.reads)
        }
        self.masked_nodes = {name for name, reads in self._reads.items() if reads} | set(self._subsets)

    def call(self, node: Node) -> Any:
        if node.name not in self.masked_nodes:
            return super().call(node)
        arguments = _wide_literals(map_arg(bind(node), self.value))
        for read in self._reads.get(node.name, ()):
            _replace(arguments, read, lambda tensor, read=read: self._zeroed(tensor, read))
        subset = self._subsets.get(node.name)
        if subset is None:
            return _call_by_name(node.target, arguments)
        for read in subset.reads:
            _replace(arguments, read, lambda tensor, read=read: gathered(tensor, read.axis, read.labels, self._kept))
        if "normalized_shape" in arguments:
            count = len(arguments["normalized_shape"])
            arguments["normalized_shape"] = list(arguments["input"].shape[-count:])
        return self._scattered(_call_by_name(node.target, arguments), subset)

    def _zeroed(self, tensor: Tensor, read: Read) -> Tensor:
        return tensor.index_fill(read.axis, _positions(tensor.shape[read.axis], ~self._kept[read.labels]), 0)

    def _scattered(self, result: Any, subset: Subset) -> Any:
        """The result with zeros at the removed places of the axes along which it has one position for each."""
        for axis, labels in subset.results.items():
            survives = self._kept[labels]
            repeats = result.shape[axis] // int(survives.sum())
            shape = list(result.shape)
            shape[axis] = repeats * len(labels)
            places = _positions(shape[axis], survives)
            result = result.new_zeros(shape).index_copy(axis, places, result)
        return result


def kept_part(tensor: Tensor, value: Value, kept: np.ndarray) -> Tensor:
    """`tensor` without the removed positions of every labelled axis of `value`."""
    for axis, labels in value.labels.items():
        tensor = gathered(tensor, axis, labels, kept)
    return tensor


def gathered(tensor: Tensor, axis: int, labels: Labels, kept: np.ndarray) -> Tensor:
    """`tensor` at the kept positions of one axis."""
    if kept[labels].all():
        return tensor
    return tensor.index_select(axis, _positions(tensor.shape[axis], kept[labels]))


def _positions(size: int, chosen: np.ndarray) -> Tensor:
    """Indices of the chosen positions of an axis that has them once for each image of the batch, or just once."""
    if size % len(chosen):
        raise ValueError(f"an axis of {size} positions does not hold {len(chosen)} for every image of the batch")
    return torch.from_numpy(np.flatnonzero(np.tile(chosen, size // len(chosen))))


def _replace(arguments: dict[str, Any], read: Read, change: Callable[[Tensor], Tensor]) -> None:
    if read.index is None:
        arguments[read.argument] = change(arguments[read.argument])
    else:
        items = list(arguments[read.argument])
        items[read.index] = change(items[read.index])
        arguments[read.argument] = items


def _call_by_name(target: torch._ops.OpOverload, arguments: Mapping[str, Any]) -> Any:
    schema = target._schema.arguments
    positional = [arguments[one.name] for one in schema if not one.kwarg_only]
    return target(*positional, **{one.name: arguments[one.name] for one in schema if one.kwarg_only})


def _wide_literals(argument: Any) -> Any:
    """float64 wherever a narrower type is named, so that rounding hides nothing."""
    if isinstance(argument, torch.dtype):
        return torch.float64 if argument in _NARROW else argument
    if isinstance(argument, dict):
        return {key: _wide_literals(item) for key, item in argument.items()}
    if isinstance(argument, (list, tuple)):
        return type(argument)(_wide_literals(item) for item in argument)
    return argument


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _NARROW else value
    if isinstance(value, (list, tuple)):
        return tuple(_widened(item) for item in value)
    return value
