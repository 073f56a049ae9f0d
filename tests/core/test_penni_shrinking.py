"""Dead channels leave the network, and the network computes what it computed."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from core.analysis import analyse, profile
from core.network import Network
from core.penni.constants import constant_components
from core.penni.shrinking import compose, keep_of, shrink
from tests.core.penni_cases import Chain, Residual, changed, difference, network_of, silenced, silent_value
from tests.core.recovery_cases import trained_network


def widths(network: Network) -> dict[str, tuple[int, int]]:
    return {
        name.removesuffix(".weight"): tuple(tensor.shape[:2])
        for name, tensor in network.tensors.items()
        if tensor.ndim == 4
    }


def test_a_channel_that_nobody_reads_goes_with_the_weights_that_make_it():
    network = silenced(network_of(Chain(padding=1)), "second.weight", [2, 5], axis=1)
    found = shrink(network)
    assert widths(found.network) == {"first": (6, 3), "second": (6, 6)}
    assert found.report["unread"] == 2
    assert difference(network, found.network) < 1e-12
    assert profile(found.network).costs.params == profile(network).costs.params - 2 * (27 + 2 + 9 * 6)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_silent_channel_behind_a_closed_relu_goes_freely_whatever_the_padding(padding):
    network = silent_value(silenced(network_of(Chain(padding=padding)), "first.weight", [3]), "bn1", 3, -0.4)
    found = shrink(network)
    assert widths(found.network)["first"] == (7, 3)
    assert found.report["zero"] == 1
    assert difference(network, found.network) < 1e-12


@pytest.mark.parametrize(("bias", "norm_behind"), [(True, True), (True, False), (False, True)])
def test_a_constant_is_folded_into_the_readers_bias_or_the_mean_behind_it(bias, norm_behind):
    network = silent_value(silenced(network_of(Chain(0, bias, norm_behind)), "first.weight", [3, 4]), "bn1", 3, 0.7)
    network = silent_value(network, "bn1", 4, 1.9)
    found = shrink(network)
    assert widths(found.network) == {"first": (6, 3), "second": (6, 6)}
    assert found.report["folded"] == 2
    assert difference(network, found.network) < 1e-6


def test_a_constant_before_a_padded_reader_stays_unless_a_small_change_at_the_border_is_allowed():
    network = silent_value(silenced(network_of(Chain(padding=1)), "first.weight", [3]), "bn1", 3, 0.7)
    exact, lossy = shrink(network), shrink(network, lossy=True)
    assert exact.network is network
    assert exact.report["constant_kept"] == 1
    assert widths(lossy.network)["first"] == (7, 3)
    assert lossy.report["lossy"] == 1
    assert 1e-5 < difference(network, lossy.network) < 0.5


def test_a_constant_without_a_bias_to_go_to_stays():
    network = silent_value(silenced(network_of(Chain(0, False, False)), "first.weight", [3]), "bn1", 3, 0.7)
    found = shrink(network)
    assert found.network is network
    assert found.report["constant_kept"] == 1


def test_death_spreads_until_nothing_changes():
    network = silenced(network_of(Chain(padding=1)), "head.weight", [1], axis=1)
    # The only output that reads these inputs is the one that the head does not read.
    weight = network.tensors["second.weight"].detach().clone()
    weight[[0, 2, 3, 4, 5], 6:] = 0
    network = changed(network, second__weight=weight)
    found = shrink(network)
    assert widths(found.network) == {"first": (6, 3), "second": (5, 6)}
    assert difference(network, found.network) < 1e-12


class TestResidualStream:
    def test_a_channel_that_is_dead_in_every_reader_is_removed_from_the_whole_stream(self):
        network = network_of(Residual())
        for reader in ("a1.weight", "side.weight", "head.weight"):
            network = silenced(network, reader, [4], axis=1)
        found = shrink(network)
        assert widths(found.network) == {"stem": (7, 3), "a1": (6, 7), "a2": (7, 6), "side": (7, 7)}
        assert found.network.tensors["head.weight"].shape == (4, 7)
        assert difference(network, found.network) < 1e-12

    @pytest.mark.parametrize("alive", ["a1.weight", "side.weight", "head.weight"])
    def test_a_channel_that_one_member_reads_stays_in_all_of_them(self, alive):
        network = network_of(Residual())
        for reader in {"a1.weight", "side.weight", "head.weight"} - {alive}:
            network = silenced(network, reader, [4], axis=1)
        assert shrink(network).network is network

    def test_a_channel_is_silent_only_if_every_writer_is(self):
        network = network_of(Residual())
        for writer, norm in (("stem", "bn0"), ("a2", "b2"), ("side", "b3")):
            network = silent_value(silenced(network, f"{writer}.weight", [2]), norm, 2, -0.5)
        found = shrink(network)
        assert widths(found.network)["stem"] == (7, 3)
        assert found.report["zero"] == 1
        assert difference(network, found.network) < 1e-12
        weight = network.tensors["side.weight"].detach().clone()
        weight[2, 0] = 0.3
        assert shrink(changed(network, side__weight=weight)).network.tensors["stem.weight"].shape[0] == 8

    def test_inner_channels_go_by_themselves_and_their_constants_follow_the_padding(self):
        network = silent_value(silenced(network_of(Residual()), "a1.weight", [1]), "b1", 1, 0.6)
        network = silent_value(silenced(network, "a1.weight", [5]), "b1", 5, -0.6)
        found = shrink(network)
        assert widths(found.network)["a1"] == (5, 8)
        assert (found.report["zero"], found.report["constant_kept"]) == (1, 1)

    def test_a_layer_keeps_one_channel(self):
        network = silenced(network_of(Residual()), "a2.weight", list(range(6)), axis=1)
        found = shrink(network)
        assert widths(found.network)["a1"] == (1, 8)
        assert difference(network, found.network) < 1e-12


class Mixed(nn.Module):
    """Channels that are joined, gated and convolved one by one."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.gate = nn.Conv2d(9, 9, 1)
        self.own = nn.Conv2d(9, 9, 3, padding=1, groups=9)
        self.head = nn.Linear(9 * 4, 4)

    def forward(self, x):
        x = torch.relu(torch.cat([self.left(x), self.right(x)], 1))
        x = self.own(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@cache
def exported(module: type[nn.Module]) -> Network:
    return network_of(module())


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    module=st.sampled_from([Chain, Residual, Mixed]),
    seed=st.integers(0, 10_000),
    share=st.sampled_from([0.1, 0.4, 0.8]),
    biases=st.booleans(),
)
def test_whatever_is_zero_the_outputs_stay(module, seed, share, biases):
    network = exported(module)
    generator = np.random.default_rng(seed)
    for name, tensor in network.tensors.items():
        if tensor.ndim > 1:
            for axis in (0, 1):
                network = silenced(
                    network, name, np.flatnonzero(generator.random(tensor.shape[axis]) < share).tolist(), axis
                )
        elif biases and name.endswith("bias"):
            network = silenced(network, name, np.flatnonzero(generator.random(len(tensor)) < share).tolist())
    inputs = network.random_inputs(3, seed, torch.float64)
    wanted, found = (net.to(torch.float64).run(*inputs)[0] for net in (network, shrink(network).network))
    assert torch.allclose(wanted, found, rtol=1e-5, atol=1e-6)


def test_a_channel_behind_a_gate_that_depends_on_the_image_is_not_constant():
    network = silenced(network_of(Mixed()), "left.weight", [1])
    assert not constant_components(network, analyse(network))[
        analyse(network).component_of[analyse(network).trace.tensors["left.weight"].labels[0][1]]
    ]


def test_option_a_shortcuts_of_a_trained_network_shrink_too():
    network = trained_network()
    pruned = silenced(network, "layer1.0.conv2.weight", [0, 3], axis=1)
    pruned = silenced(pruned, "layer3.0.conv2.weight", [1, 2, 7], axis=1)
    found = shrink(pruned)
    assert difference(pruned, found.network) < 1e-6
    assert found.network.tensors["layer1.0.conv1.weight"].shape[0] == 6
    assert found.network.tensors["layer3.0.conv1.weight"].shape[0] == 29


def test_two_cuts_are_counted_in_the_channels_of_the_first_network():
    network = silenced(network_of(Chain(padding=1)), "second.weight", [2, 5], axis=1)
    first = shrink(network)
    second = shrink(silenced(first.network, "second.weight", [3], axis=1))
    kept = compose(first.kept, second.kept)
    assert kept["second.weight"][1].tolist() == [0, 1, 3, 6, 7]
    assert torch.equal(
        second.network.tensors["first.weight"],
        network.tensors["first.weight"][torch.from_numpy(kept["first.weight"][0])],
    )
    analysis = analyse(network)
    keep = keep_of(analysis, kept)
    rows = next(cut.component for cut in analysis.slices if (cut.tensor, cut.axis) == ("first.weight", 0))
    assert np.flatnonzero(~keep[rows]).tolist() == [2, 4, 5]
