"""Weights that are computed by statistics over themselves become plain ones; every other computation stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from core.analysis import analyse
from core.analysis.folding import fold_statistics
from core.surgery import apply, verify
from tests.core.channel_networks import export, random_keep


class ScaledStandardised(nn.Conv2d):
    """NF-nets: batch-norm of the weight itself, with a learned gain per filter."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=self.padding)


class Standardised(nn.Conv2d):
    """Qiao et al.: mean and deviation of each filter."""

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-6), self.bias, padding=self.padding)


KINDS = {
    "batch norm of the weight": lambda i, o: ScaledStandardised(i, o, 3),
    "mean and deviation": lambda i, o: Standardised(i, o, 3, padding=1),
    "weight norm": lambda i, o: parametrizations.weight_norm(nn.Conv2d(i, o, 3, padding=1)),
    "spectral norm": lambda i, o: parametrizations.spectral_norm(nn.Conv2d(i, o, 3, padding=1)),
}


class Two(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.first = kind(3, 8)
        self.second = kind(8, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.second(F.silu(self.first(x)))).mean((2, 3)))


def difference(one, other) -> float:
    """Of the outputs in float64."""
    inputs = one.random_inputs(3, 0, torch.float64)
    first, second = one.to(torch.float64).run(*inputs)[0], other.to(torch.float64).run(*inputs)[0]
    return float((first - second).norm() / first.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_folding_keeps_the_function_and_frees_the_inputs(kind):
    torch.manual_seed(0)
    network = export(Two(KINDS[kind]).eval(), 3, 6, 6)
    assert [group.label for group in analyse(network).groups] in ([], ["second"])
    folded = fold_statistics(network)
    assert folded.layers == ("first", "second")
    assert difference(network, folded.network) < 3e-7
    exact = network.to(torch.float64)
    assert difference(exact, fold_statistics(exact).network) < 1e-13
    analysis = analyse(folded.network)
    assert analysis.faults == ()
    assert [(group.label, len(group.components)) for group in analysis.groups] == [("first", 8), ("second", 12)]
    keep = random_keep(analysis, np.random.default_rng(0))
    result = verify(folded.network, analysis, keep, apply(folded.network, analysis, keep))
    assert result.passed and result.max_relative_error < 1e-12


def test_the_weight_keeps_its_name_and_what_only_the_statistic_read_is_dropped():
    network = export(Two(KINDS["batch norm of the weight"]), 3, 6, 6)
    folded = fold_statistics(network).network
    assert set(network.tensors) - set(folded.tensors) == {"first.gain", "second.gain"}
    assert set(folded.tensors) < set(network.tensors)
    assert folded.parameter_names == {name for name in network.parameter_names if not name.endswith("gain")}
    assert folded.tensors["second.weight"].shape == (12, 8, 3, 3)
    assert folded.tensors["second.weight"].dtype == torch.float32
    flat = folded.tensors["second.weight"].flatten(1)
    assert flat.mean(1).abs().max() < 1e-6
    assert not any(node.name.startswith("batch_norm") for node in folded.graph.nodes)
    assert network.tensors["second.weight"] is not folded.tensors["second.weight"]


def test_a_network_without_such_weights_is_returned_as_it_is():
    class Plain(nn.Module):
        """Parameter-only computations that labels pass through: a gain's view, a bias in parts, a table of biases."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.gamma = nn.Parameter(torch.rand(8))
            self.left, self.right = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(5))
            self.table = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 8))
            self.register_buffer("coordinates", torch.rand(25, 2))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            bias = torch.cat([self.left, self.right]).view(8, 1, 1) + self.table(self.coordinates).t().view(8, 5, 5)
            return self.head((self.stem(x) * self.gamma.view(8, 1, 1) + bias).mean((2, 3)))

    network = export(Plain(), 3, 5, 5)
    folded = fold_statistics(network)
    assert folded.network is network
    assert folded.layers == ()
    widths = sorted(len(group.components) for group in analyse(network).groups)
    # The coordinates, the two parts of the bias and the hidden units of the table.
    assert widths == [2, 3, 5, 6]


def test_a_weight_that_is_also_read_as_it_is_keeps_both_values():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.stem(x)
            y = F.conv2d(x, F.normalize(self.weight, dim=0), padding=1) + F.conv2d(x, self.weight, padding=1)
            return self.head((y + F.conv2d(y, F.normalize(self.weight, dim=0), padding=1)).mean((2, 3)))

    network = export(Both(), 3, 5, 5)
    folded = fold_statistics(network).network
    assert set(folded.tensors) - set(network.tensors) == {"weight_folded"}
    assert "weight_folded" in folded.parameter_names
    assert torch.equal(folded.tensors["weight"], network.tensors["weight"])
    assert difference(network, folded) < 1e-6


def test_two_results_of_one_weight_take_two_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = F.conv2d(self.stem(x), F.normalize(self.weight, dim=0))
            return self.head(F.conv2d(x, F.normalize(self.weight, dim=1)).mean((2, 3)))

    network = export(Twice(), 3, 5, 5)
    folded = fold_statistics(network).network
    assert set(folded.tensors) == set(network.tensors) | {"weight_folded"}
    assert difference(network, folded) < 1e-6


def test_a_weight_that_is_written_to_is_left_alone():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            weight[:, :, 2] = 0
            return self.head(F.conv2d(self.stem(x), weight, padding=1).mean((2, 3)))

    network = export(Masked(), 3, 5, 5)
    assert fold_statistics(network).network is network
