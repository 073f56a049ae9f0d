"""What a module becomes when it enters: one plain graph, named outputs, no scopes, expert weights with their axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.analysis import analyse, profile
from core.errors import EngineError
from core.measure import independent_costs
from core.network import Network, TensorMeta
from core.surgery import apply, verify
from tests.core.channel_networks import export, random_keep


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)


class WithoutGradient(Convolution):
    def forward(self, x):
        with torch.no_grad():
            y = self.stem(x)
            first, second = y.chunk(2, 1)
        return self.head(torch.cat([second, F.relu(first)], 1))


class WithoutAutocast(Convolution):
    def forward(self, x):
        y = self.stem(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            y = torch.softmax(y.float().flatten(2), 2).unflatten(2, (6, 6)).to(y.dtype)
        return self.head(y)


class NestedScopes(Convolution):
    def forward(self, x):
        with torch.no_grad():
            y = self.stem(x)
            with torch.autocast(device_type="cpu", enabled=False):
                y = y * 2
        return self.head(y)


@pytest.mark.parametrize("module", [WithoutGradient, WithoutAutocast, NestedScopes])
def test_scopes_are_written_out(module):
    torch.manual_seed(0)
    module = module().eval()
    network = export(module, 3, 6, 6)
    assert all(node.op != "get_attr" or node.target in network.tensors for node in network.graph.nodes)
    assert not any("wrap" in str(node.target) for node in network.graph.nodes)
    assert all(
        isinstance(node.meta["value"], (TensorMeta, tuple)) for node in network.graph.nodes if node.op != "output"
    )
    inputs = network.random_inputs(3, 0)
    with torch.no_grad():
        assert torch.equal(network.run(*inputs)[0], module(*inputs))
    assert {node.meta["path"] for node in network.graph.nodes if node.name.startswith("conv2d")} == {"stem", "head"}


def test_autocast_that_is_on_is_refused_with_its_place():
    class Mixed(Convolution):
        def forward(self, x):
            with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
                return self.head(self.stem(x))

    with pytest.raises(EngineError, match=r"torch\.autocast") as refusal:
        export(Mixed(), 3, 6, 6)
    assert refusal.value.code == "invalid_model"


def test_conversions_to_the_same_type_are_dropped_and_others_stay():
    class Converted(Convolution):
        def forward(self, x):
            y = self.stem(x.float()).to(torch.float32)
            return self.head(y.double().float())

    names = [node.name for node in export(Converted(), 3, 6, 6).graph.nodes if node.name.startswith("to")]
    assert len(names) == 2


def test_outputs_are_named_after_the_keys_of_the_dictionaries_that_hold_them():
    class Several(Convolution):
        def forward(self, x):
            y = self.stem(x)
            return {"out": self.head(y), "aux": {"mean": y.mean((2, 3)), "parts": [y.sum((1, 2, 3))]}, "nothing": None}

    network = export(Several(), 3, 6, 6)
    assert [(one.name, one.shape) for one in network.outputs] == [
        ("out", (2, 6, 6)),
        ("aux_mean", (8,)),
        ("aux_parts_0", ()),
    ]
    first, second, third = network.run(*network.random_inputs(2, 0))
    assert (first.shape, second.shape, third.shape) == ((2, 2, 6, 6), (2, 8), (2,))


def test_outputs_of_a_tuple_are_numbered():
    class Pair(Convolution):
        def forward(self, x):
            y = self.stem(x)
            return self.head(y), y.shape[2], y

    assert [one.name for one in export(Pair(), 3, 6, 6).outputs] == ["output_0", "output_1"]


def test_a_network_that_returns_no_tensor_is_refused():
    class Nothing(Convolution):
        def forward(self, x):
            self.stem(x)
            return {"size": 3}

    with pytest.raises(EngineError, match="returns no tensor"):
        export(Nothing(), 3, 6, 6)


def test_control_flow_that_depends_on_data_is_refused():
    class Branching(Convolution):
        def forward(self, x):
            y = self.stem(x)
            return torch.cond(y.mean() > 0, lambda t: t * 2, lambda t: t + 1, (y,))

    with pytest.raises(EngineError, match="control flow"):
        export(Branching(), 3, 6, 6)


def test_an_assertion_without_a_message_is_reported_by_its_code():
    class Fussy(Convolution):
        def forward(self, x):
            torch._assert(x.shape[2] == 256, "")
            return self.head(self.stem(x))

    with pytest.raises(EngineError, match=r"torch\._assert\(x\.shape\[2\] == 256"):
        export(Fussy(), 3, 6, 6)


class ConditionalConvolution(nn.Module):
    """Each image has its own filters, mixed from experts that are stored flat (Yang et al., 2019, as in timm)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.shape = (outputs, inputs // groups, kernel, kernel)
        self.groups = groups
        self.weight = nn.Parameter(torch.randn(3, outputs * inputs // groups * kernel * kernel))

    def forward(self, x, routing):
        batch, channels, height, width = x.shape
        weight = torch.matmul(routing, self.weight).view(batch * self.shape[0], *self.shape[1:])
        y = F.conv2d(
            x.reshape(1, batch * channels, height, width),
            weight,
            padding=self.shape[2] // 2,
            groups=batch * self.groups,
        )
        return y.permute(1, 0, 2, 3).view(batch, self.shape[0], height, width)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.routing = nn.Linear(8, 3)
        self.wide = ConditionalConvolution(8, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = ConditionalConvolution(12, 12, 3, groups=12)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        routing = torch.sigmoid(self.routing(x.mean((2, 3))))
        return self.head(self.depthwise(F.relu(self.norm(self.wide(x, routing))), routing))


def test_expert_weights_get_the_axes_of_their_convolution_and_are_pruned_along_them():
    torch.manual_seed(0)
    module = Conditional().eval()
    network = export(module, 3, 6, 6)
    assert network.tensors["wide.weight"].shape == (3, 12, 8, 1, 1)
    assert network.tensors["depthwise.weight"].shape == (3, 12, 1, 3, 3)
    inputs = network.random_inputs(3, 0)
    with torch.no_grad():
        assert torch.allclose(network.run(*inputs)[0], module(*inputs), atol=1e-5)
    analysis = analyse(network)
    assert analysis.faults == ()
    # The first of the three experts stays, because a mixture of one would be no product any more.
    assert sorted(len(group.components) for group in analysis.groups) == [2, 8, 12]
    for seed in range(3):
        keep = random_keep(analysis, np.random.default_rng(seed))
        pruned = apply(network, analysis, keep)
        result = verify(network, analysis, keep, pruned)
        assert result.passed and result.max_relative_error < 1e-12, result
        assert independent_costs(pruned) == profile(pruned).costs == analysis.costs(analysis.widths(keep))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_other_batch_sizes_than_the_exported_one_work(batch):
    network = Network.from_module(Conditional(), {"input": (3, 6, 6)})
    assert network.run(*network.random_inputs(batch, 0))[0].shape == (batch, 2, 6, 6)
