"""Costs of a network counted by running it, independently of the channel analysis.

The planner's prediction and the profile come from one set of formulas; a delivered budget must not rest on them alone.
Here parameters and bytes are summed from the tensors, multiply-accumulates come from torch's own operator counter, and
peak memory from a run whose real tensors are watched as they come and go.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from core.analysis.buffer_model import BYTES_PER_ELEMENT, FILLED, Layout, may_overwrite, source, view_layout
from core.analysis.schema import operator_name
from core.budget import Costs
from core.network import Network

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def independent_costs(network: Network) -> Costs:
    """Exact costs at batch 1 by observation.

    Every floating-point tensor counts, whether a node reads it or not, because it is delivered; a tensor under two
    names counts once. Integer tensors (`num_batches_tracked`) do not count.
    """
    parameters, floating = {}, {}
    for name, tensor in network.tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            floating[identity] = tensor.numel()
            if name in network.parameter_names:
                parameters[identity] = tensor.numel()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        peak_bytes = _WatchedRun(network).peak_bytes()
    return Costs(
        params=sum(parameters.values()),
        macs=counter.get_total_flops() // 2,
        weight_bytes=BYTES_PER_ELEMENT * sum(floating.values()),
        peak_activation_bytes=peak_bytes,
    )


@dataclass(eq=False)
class _Buffer:
    """Memory that some live value lies in. A weight's memory is no activation: it has no bytes."""

    bytes: int
    is_weight: bool = False


@dataclass(frozen=True, eq=False)
class _Held:
    """A real tensor and the buffer that it lies in."""

    tensor: Tensor
    buffer: _Buffer
    layout: Layout = FILLED


class _WatchedRun:
    """Runs a graph on real tensors, drops each after its last reader, and sums the buffers that are still held.

    Sizes are those of the tensors that the operators really return, and a view is believed only where it really shares
    its source's storage. What may share or overwrite is the definition of `core.analysis.buffer_model`.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._nodes = list(network.graph.nodes)
        self._inputs = iter(network.random_inputs(batch=1, seed=0))
        self._held: dict[Node, Any] = {}
        order = {node: index for index, node in enumerate(self._nodes)}
        self._last_reader = {node: max((order[user] for user in node.users), default=order[node]) for node in order}

    def peak_bytes(self) -> int:
        """The largest sum of bytes held at any step."""
        peak = 0
        for step, node in enumerate(self._nodes):
            if node.op == "placeholder":
                self._held[node] = _allocated(next(self._inputs))
            elif node.op == "get_attr":
                tensor = self._network.tensors[node.target].contiguous()
                self._held[node] = _Held(tensor, _Buffer(0, is_weight=True))
            elif node.op == "call_function":
                self._held[node] = self._call(node, step)
            live = {held.buffer for value in self._held.values() for held in _tensors(value)}
            peak = max(peak, sum(buffer.bytes for buffer in live))
            for dead in [one for one in self._held if self._last_reader[one] <= step]:
                del self._held[dead]
        return peak

    def _call(self, node: Node, step: int) -> Any:
        if node.target is operator.getitem:
            return self._held[node.args[0]][node.args[1]]
        with _counted_products(node):
            result = node.target(*map_arg(node.args, self._value), **map_arg(node.kwargs, self._value))
        operand = source(node)
        if operand is None:
            return _each(result, _allocated)
        held = self._held[operand]
        layout = view_layout(node, held.layout)
        if layout is not None:
            return _each(result, lambda tensor: _viewed(tensor, held, layout))
        if (
            may_overwrite(node)
            and held.layout.whole
            and not held.buffer.is_weight
            and self._last_use(held.buffer, step)
        ):
            return _Held(result, held.buffer, held.layout)
        return _each(result, _allocated)

    def _value(self, node: Node) -> Any:
        return _each(self._held[node], lambda held: held.tensor)

    def _last_use(self, buffer: _Buffer, step: int) -> bool:
        """Whether no value in the buffer is read after this step."""
        later = (value for node, value in self._held.items() if self._last_reader[node] > step)
        return not any(held.buffer is buffer for value in later for held in _tensors(value))


def _counted_products(node: Node) -> AbstractContextManager:
    """oneDNN runs a recurrent layer as one operator, whose products torch's counter does not know: without oneDNN it does."""
    if operator_name(node.target) in _RECURRENT:
        return torch.backends.mkldnn.flags(enabled=False)
    return nullcontext()


def _allocated(tensor: Tensor) -> _Held:
    # Contiguous, because a buffer is filled in order, whatever strides an operator prefers for its result.
    return _Held(tensor.contiguous(), _Buffer(BYTES_PER_ELEMENT * tensor.numel()))


def _viewed(tensor: Tensor, base: _Held, layout: Layout) -> _Held:
    if tensor.untyped_storage().data_ptr() != base.tensor.untyped_storage().data_ptr():
        return _allocated(tensor)
    return _Held(tensor, base.buffer, layout)


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of every tensor (bare or held) in `value`, which may be a tensor, a sequence of them or a number."""
    if isinstance(value, (Tensor, _Held)):
        return function(value)
    if isinstance(value, (tuple, list)):
        return tuple(_each(item, function) for item in value)
    return value


def _tensors(value: Any) -> Iterator[_Held]:
    if isinstance(value, _Held):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
