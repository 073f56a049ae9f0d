"""Costs predicted from widths equal the costs of the network that is really cut."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.analysis import analyse, profile
from core.analysis.costs import LiveProduct, Product, build_cost_table
from core.architectures import build
from core.budget import Costs
from core.surgery import apply
from tests.core.channel_networks import (
    CifarResNet,
    InvertedResidual,
    ShuffleAndDense,
    Vgg,
    counted_macs,
    export,
    random_keep,
)

CASES = {
    "resnet": (CifarResNet, (3, 16, 16)),
    "vgg": (Vgg, (3, 12, 12)),
    "inverted residual": (InvertedResidual, (3, 16, 16)),
    "shuffle and dense": (ShuffleAndDense, (3, 6, 6)),
}


def test_resnet20_has_its_published_costs():
    network = export(build("cifar_resnet20", {}), 3, 32, 32)
    costs = profile(network).costs
    assert costs == Costs(params=269722, macs=40551040, weight_bytes=1084392, peak_activation_bytes=196608)
    assert costs.flops == 2 * counted_macs(network)


@pytest.mark.parametrize("name", CASES)
def test_predicted_costs_equal_the_profile_of_the_pruned_network(name):
    module, shape = CASES[name]
    network = export(module(), *shape)
    analysis = analyse(network)
    assert analysis.costs(analysis.full_widths) == profile(network).costs
    for seed in range(4):
        keep = random_keep(analysis, np.random.default_rng(seed), fraction=0.3 + 0.15 * seed)
        pruned = apply(network, analysis, keep)
        predicted = analysis.costs(analysis.widths(keep))
        assert predicted == profile(pruned).costs
        assert predicted.macs == counted_macs(pruned)
        tensors = [tensor for tensor in pruned.tensors.values() if tensor.is_floating_point()]
        assert predicted.weight_bytes == 4 * sum(tensor.numel() for tensor in tensors)
        assert predicted.params == sum(pruned.tensors[name].numel() for name in pruned.parameter_names)


def test_layers_of_a_profile_sum_to_its_totals():
    result = profile(export(ShuffleAndDense(), 3, 6, 6))
    assert sum(layer.params for layer in result.layers) == result.costs.params
    assert sum(layer.macs for layer in result.layers) == result.costs.macs
    stem = result.layers[0]
    assert (stem.name, stem.type, stem.params, stem.output_shape) == ("stem", "conv2d", 16 * 3 * 9 + 16, (16, 6, 6))
    assert stem.macs == 16 * 3 * 9 * 36
    assert stem.activation_bytes == 4 * 16 * 36


def test_a_tensor_under_two_names_counts_once_and_stays_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.first = nn.Conv2d(6, 6, 1, bias=False)
            self.second = nn.Conv2d(6, 6, 1, bias=False)
            self.second.weight = self.first.weight
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.second(torch.relu(self.first(x)))).mean((2, 3)))

    network = export(Tied(), 3, 4, 4)
    analysis = analyse(network)
    assert analysis.costs(analysis.full_widths).params == (18 + 6) + 36 + (12 + 2)
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    assert analysis.costs(analysis.widths(keep)) == profile(pruned).costs
    assert pruned.tensors["first.weight"].data_ptr() == pruned.tensors["second.weight"].data_ptr()


def test_an_operator_without_a_rule_still_counts_its_multiplications():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x = self.stem(x).flatten(2)
            return torch.einsum("bcn,bdn->bcd", x, x)

    network = export(Outer(), 3, 4, 4)
    assert profile(network).costs.macs == counted_macs(network) == 3 * 4 * 16 + 4 * 4 * 16


def test_one_evaluation_takes_well_under_a_millisecond():
    analysis = analyse(export(CifarResNet(blocks=3), 3, 16, 16))
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(100):
            analysis.costs(analysis.full_widths)
        durations.append((time.perf_counter() - start) / 100)
    assert min(durations) < 200e-6


def test_a_step_that_can_never_be_the_peak_is_dropped():
    fixed, slope = np.array([0, 0]), np.eye(2)
    first, second = (0,), (1,)
    wide = [Product(8, first), Product(4, second)]
    steps = [wide, [Product(7, first)], [Product(5, second)], wide]
    buffers = [LiveProduct(product, step, step) for step, products in enumerate(steps) for product in products]
    table = build_cost_table(fixed, slope, [], [], [], buffers)
    assert len(table.totals) == 3 + 2
    assert table.evaluate(np.array([3, 1])).peak_activation_bytes == 28
    assert table.evaluate(np.array([0, 3])).peak_activation_bytes == 15


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2), st.integers(0, 9), st.integers(0, 5)), max_size=12),
    st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_the_peak_is_the_largest_sum_of_live_buffers_over_all_steps(drawn, widths):
    """Buffers drawn as (bytes per channel, group, birth, steps that it lives on)."""
    buffers = [LiveProduct(Product(size, (group,)), birth, birth + more) for size, group, birth, more in drawn]
    table = build_cost_table(np.zeros(3), np.eye(3), [], [], [], buffers)
    live = [
        sum(size * widths[group] for size, group, birth, more in drawn if birth <= step <= birth + more)
        for step in range(16)
    ]
    assert table.evaluate(np.array(widths)).peak_activation_bytes == max(live)
