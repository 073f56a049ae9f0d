"""Costs of a network counted by running it, independently of the channel analysis.

The planner's prediction and the profile come from one set of formulas; a delivered budget must not rest on them alone.
Here parameters and bytes are summed from the tensors, multiply-accumulates come from torch's own operator counter, and
peak memory from an interpreter that watches real buffers come and go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from core.budget import Costs
from core.network import Network

FLOAT32_BYTES = 4


def independent_costs(network: Network) -> Costs:
    """Exact costs at batch 1 by observation: see the module's text for what is counted how."""
    module = network.module()
    inputs = network.random_inputs(batch=1, seed=0)
    watcher = _BufferWatcher(module)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        watcher.run(*inputs)
    read = {node.target for node in network.graph.nodes if node.op == "get_attr"}
    params = sum(network.tensors[name].numel() for name in read & network.parameter_names)
    floating = sum(network.tensors[name].numel() for name in read if network.tensors[name].is_floating_point())
    return Costs(
        params=params,
        macs=counter.get_total_flops() // 2,
        weight_bytes=FLOAT32_BYTES * floating,
        peak_activation_bytes=watcher.peak_bytes,
    )


class _BufferWatcher(torch.fx.Interpreter):
    """Runs a graph and counts the bytes of live activation buffers by the storage that each value really uses.

    DESIGN's buffer model: a view shares its base's storage, so it costs nothing; batch-norm, dropout and unary
    element-wise operators write into their input's buffer if nothing reads it later; a buffer dies after its last
    reader. Bytes are float32 bytes whatever the element type.
    """

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.peak_bytes = 0
        order = {node: index for index, node in enumerate(self.module.graph.nodes)}
        self._last_reader = {node: max((order[user] for user in node.users), default=order[node]) for node in order}
        self._order = order
        self._buffer: dict[torch.fx.Node, frozenset[int]] = {}
        self._bytes: dict[int, int] = {}
        self._owner_of_storage: dict[int, int] = {}
        self._kept_alive: list[Tensor] = []

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        if node.op in ("placeholder", "call_function"):
            self._buffer[node] = frozenset().union(*(self._place(node, t) for t in _tensors(result)))
        self._account(node)
        return result

    def _place(self, node: torch.fx.Node, tensor: Tensor) -> frozenset[int]:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in self._owner_of_storage:
            return frozenset({self._owner_of_storage[pointer]})
        self._kept_alive.append(tensor)  # so that no later tensor can be given the same address
        reused = self._reused_buffer(node, tensor)
        if reused is None:
            reused = len(self._bytes)
            self._bytes[reused] = FLOAT32_BYTES * tensor.numel()
        self._owner_of_storage[pointer] = reused
        return frozenset({reused})

    def _reused_buffer(self, node: torch.fx.Node, tensor: Tensor) -> int | None:
        if node.op != "call_function" or not _works_in_place(node):
            return None
        source = node.args[0]
        if not isinstance(source, torch.fx.Node) or len(self._buffer.get(source, ())) != 1:
            return None
        (buffer,) = self._buffer[source]
        if self._bytes[buffer] != FLOAT32_BYTES * tensor.numel():
            return None
        now = self._order[node]
        readers = (other for other, held in self._buffer.items() if buffer in held and self._last_reader[other] > now)
        return buffer if next(readers, None) is None else None

    def _account(self, node: torch.fx.Node) -> None:
        now = self._order[node]
        live = {buffer for other, held in self._buffer.items() if self._last_reader[other] >= now for buffer in held}
        self.peak_bytes = max(self.peak_bytes, sum(self._bytes[buffer] for buffer in live))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _works_in_place(node: torch.fx.Node) -> bool:
    """Whether the buffer model lets this operator write over its input."""
    tensor_args = [a for a in node.args if isinstance(a, torch.fx.Node) and a.op != "get_attr"]
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0].rstrip("_")
    if name in ("batch_norm", "dropout"):
        return True
    tags = getattr(node.target, "tags", ())
    return len(tensor_args) == 1 and (torch.Tag.pointwise in tags) and not _reads_parameters(node)


def _reads_parameters(node: torch.fx.Node) -> bool:
    return any(isinstance(a, torch.fx.Node) and a.op == "get_attr" for a in node.args)
