"""The costs that the analysis derives are those that a watched run counts, on every operator, pruned or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.analysis import analyse, profile
from core.analysis.buffer_model import IN_PLACE
from core.analysis.handlers.elementwise import ELEMENTWISE
from core.measure import independent_costs
from core.surgery import apply
from tests.core.channel_networks import CifarResNet, InvertedResidual, ShuffleAndDense, Vgg, export, random_keep
from tests.core.operator_cases import CALLS, AroundOneOperator

MAP_BYTES = 16 * 8 * 8 * 4
INPUT_BYTES = 3 * 8 * 8 * 4


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


class UnevenSplit(nn.Module):
    """Two convolutions on unequal pieces of one map, activated before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.small = nn.Conv2d(8, 12, 1)
        self.large = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.stem(x).split([8, 16], 1)
        y = torch.cat([self.small(F.relu(small)), F.hardswish(self.large(F.relu(large)))], 1)
        return self.head(F.relu(y).mean((2, 3)))


CASES = {
    "resnet": (CifarResNet, (3, 16, 16)),
    "vgg": (Vgg, (3, 12, 12)),
    "inverted residual": (InvertedResidual, (3, 16, 16)),
    "shuffle and dense": (ShuffleAndDense, (3, 6, 6)),
    "branches": (Branches, (3, 8, 8)),
    "uneven split": (UnevenSplit, (3, 8, 8)),
}


def require_agreement(network, seeds):
    """Profile, prediction and watched run say the same, unpruned, half pruned and with single channels left."""
    analysis = analyse(network)
    assert independent_costs(network) == profile(network).costs == analysis.costs(analysis.full_widths)
    for seed in range(seeds):
        keep = random_keep(analysis, np.random.default_rng(seed), fraction=0.5 if seed else 0.02)
        pruned = apply(network, analysis, keep)
        assert independent_costs(pruned) == profile(pruned).costs == analysis.costs(analysis.widths(keep))


@pytest.mark.parametrize("name", CASES)
def test_costs_equal_a_watched_run_before_and_after_pruning(name):
    torch.manual_seed(0)
    build, shape = CASES[name]
    require_agreement(export(build(), *shape), seeds=4)


@pytest.mark.parametrize("name", CALLS)
def test_costs_around_one_operator_equal_a_watched_run(name):
    torch.manual_seed(0)
    require_agreement(export(AroundOneOperator(CALLS[name]), 3, 8, 8), seeds=2)


PEAKS = {
    # The operator writes over the convolution's output: the largest step is the convolution itself.
    **dict.fromkeys(
        ["relu", "hardswish", "log_sigmoid", "gt with a number", "2 ** x", "floor_divide with a number", "mul_", "relu_",
         "double and back", "dropout", "batch_norm", "write to a slice", "view", "permute", "same type"],
        INPUT_BYTES + MAP_BYTES,
    ),
    # It fills a second buffer while the first is still read.
    **dict.fromkeys(
        ["mul with itself", "add with itself", "sub with itself", "maximum with itself", "addcmul", "ones_like", "clone",
         "prelu", "rrelu", "group_norm", "softmax", "permute and contiguous", "permute and flatten", "channel shuffle",
         "slice of everything"],
        2 * MAP_BYTES,
    ),
    "slice of channels": MAP_BYTES * 3 // 2,
    # The result of two operands, none of which it may overwrite, whatever the flag says.
    **dict.fromkeys(["add with another", "add_", "relu of a value that is read later"], 3 * MAP_BYTES),
}  # fmt: skip


@pytest.mark.parametrize("name", PEAKS)
def test_peak_around_one_operator_is_the_one_worked_out_by_hand(name):
    network = export(AroundOneOperator(CALLS[name], last="sum"), 3, 8, 8)
    assert profile(network).costs.peak_activation_bytes == PEAKS[name]


def test_every_elementwise_operator_is_either_in_place_or_allocates_for_a_reason():
    views = {"type_as", "contiguous", "detach", "alias"}
    copies_or_new = {"clone", "lift_fresh_copy", "copy", "zeros_like", "ones_like", "full_like", "zero", "fill"}
    always_two_operands = {"maximum", "minimum", "fmax", "fmin", "atan2", "addcmul", "addcdiv", "lerp", "where"}
    always_two_operands |= {"masked_fill", "logical_and", "logical_or", "logical_xor"}
    assert views | copies_or_new | always_two_operands | IN_PLACE == ELEMENTWISE
    assert not IN_PLACE & (views | copies_or_new | always_two_operands)


def test_a_parameter_that_no_node_reads_counts_and_an_integer_buffer_does_not():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.norm = nn.BatchNorm2d(4)
            self.unused = nn.Linear(5, 7)

        def forward(self, x):
            return self.norm(self.stem(x)).mean((2, 3))

    network = export(Unused(), 3, 4, 4)
    costs = independent_costs(network)
    assert costs == profile(network).costs
    assert costs.params == (12 + 4) + (4 + 4) + (35 + 7)
    assert costs.weight_bytes == 4 * (costs.params + 4 + 4)


def test_tied_parameters_count_once_in_both_counts():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.first = nn.Conv2d(6, 6, 1, bias=False)
            self.second = nn.Conv2d(6, 6, 1, bias=False)
            self.second.weight = self.first.weight
            self.register_buffer("shadow", self.first.weight.detach())

        def forward(self, x):
            return self.second(F.relu(self.first(self.stem(x)))).mean((2, 3))

    network = export(Tied(), 3, 4, 4)
    assert independent_costs(network) == profile(network).costs
    assert profile(network).costs.params == 18 + 6 + 36


def test_resnet20_peaks_at_three_full_size_maps():
    network = export(CifarResNet(blocks=3), 3, 32, 32)
    assert profile(network).costs.peak_activation_bytes == 3 * 16 * 32 * 32 * 4
    assert independent_costs(network) == profile(network).costs
