"""The predicted peak of live buffers agrees with an execution that really allocates and frees them."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from core.analysis import analyse, profile
from core.network import Network
from core.surgery import apply
from tests.core.channel_networks import CifarResNet, InvertedResidual, ShuffleAndDense, Vgg, export, random_keep

# The operators of the test networks that run in place when nobody else reads their input.
_IN_PLACE = {
    "batch_norm", "relu", "relu_", "relu6", "silu", "elu", "leaky_relu", "hardswish", "sigmoid", "dropout", "dropout_",
    "feature_dropout", "tanh", "hardtanh", "hardtanh_",
}  # fmt: skip


def measured_peak(network: Network) -> int:
    """Run one image with real storages, freeing each after its last reader, and return the largest live byte count."""
    nodes = list(network.graph.nodes)
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.tensors.values()}
    inputs = (node for node in nodes if node.op == "placeholder")
    values: dict[Node, object] = dict(zip(inputs, network.random_inputs(1, 0), strict=True))
    peak = 0
    for index, node in enumerate(nodes):
        if node.op == "get_attr":
            values[node] = network.tensors[node.target]
        elif node.op == "call_function":
            values[node] = _execute(node, nodes[index + 1 :], values)
        live = {}
        for value in values.values():
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    live[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        peak = max(peak, sum(size for pointer, size in live.items() if pointer not in weights))
        unread = [one for one in values if not any(user in nodes[index + 1 :] for user in one.users)]
        for one in unread:
            del values[one]
    return peak


def _execute(node: Node, later: list[Node], values: dict[Node, object]) -> object:
    result = node.target(*map_arg(node.args, values.get), **map_arg(node.kwargs, values.get))
    if node.target is operator.getitem or not isinstance(result, Tensor):
        return result
    returns = node.target._schema.returns[0]
    is_view = returns.alias_info is not None and not returns.alias_info.is_write
    source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    operands = [one for one in node.all_input_nodes if isinstance(values[one], Tensor)]
    reuses = node.target._schema.name.removeprefix("aten::") in _IN_PLACE or (
        len(operands) == 1 and node.target._schema.name in ("aten::mul", "aten::add", "aten::add_", "aten::div")
    )
    if reuses and not _read_later(values[source], later, values):
        storage = values[source]
        if result.data_ptr() != storage.data_ptr():
            storage.copy_(result)
        return storage
    return result if is_view else result.clone()


def _read_later(tensor: Tensor, later: list[Node], values: dict[Node, object]) -> bool:
    pointer = tensor.untyped_storage().data_ptr()
    return any(
        isinstance(values.get(argument), Tensor) and values[argument].untyped_storage().data_ptr() == pointer
        for node in later
        for argument in node.all_input_nodes
    )


class Branches(nn.Module):
    """An input that is read twice, an activation that must not be overwritten, dropout, views of one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 1)
        self.drop = nn.Dropout2d()
        self.head = nn.Linear(6 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = F.relu(a)
        c = self.drop(b) * 2 + a
        tokens = c.flatten(2).transpose(1, 2)
        d = torch.sigmoid(self.second(c)) + self.first(torch.tanh(x))
        return self.head((tokens + d.flatten(2).transpose(1, 2)).reshape(-1, 6 * 64))


CASES = {
    "resnet": (CifarResNet, (3, 16, 16)),
    "vgg": (Vgg, (3, 12, 12)),
    "inverted residual": (InvertedResidual, (3, 16, 16)),
    "shuffle and dense": (ShuffleAndDense, (3, 6, 6)),
    "branches": (Branches, (3, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_peak_equals_an_instrumented_run_before_and_after_pruning(name):
    torch.manual_seed(0)
    build, shape = CASES[name]
    network = export(build(), *shape)
    analysis = analyse(network)
    assert profile(network).costs.peak_activation_bytes == measured_peak(network)
    for seed in range(3):
        keep = random_keep(analysis, np.random.default_rng(seed))
        pruned = apply(network, analysis, keep)
        assert analysis.costs(analysis.widths(keep)).peak_activation_bytes == measured_peak(pruned)


def test_resnet20_peaks_at_three_full_size_maps():
    network = export(CifarResNet(blocks=3), 3, 32, 32)
    assert profile(network).costs.peak_activation_bytes == 3 * 16 * 32 * 32 * 4
