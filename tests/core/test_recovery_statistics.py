"""Batch-norm statistics move by the measured change, for the channels that were kept, and only if the guard agrees."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from core.analysis import analyse, profile
from core.network import Network
from core.recovery import RecoveryConfig, accuracy, load_dataset, recover
from core.recovery.corrections import statistics_examples
from core.recovery.pipeline import _noise
from core.recovery.recalibration import kept_channels, statistics, transfer, transfer_guard
from core.surgery import apply, kept_indices
from tests.core.recovery_cases import (
    digits,
    plain_network,
    pruned_and_kept,
    pruned_network,
    save_digits,
    trained_network,
)

CPU = torch.device("cpu")


def small_network(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5))
    for norm in (module[1], module[4]):
        for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(vector, 0.5, 1.5)
    return Network.from_module(module, {"input": (2, 9, 9)})


def prune(network, channels):
    """The network without some of the first convolution's channels, and what is left of its tensors."""
    analysis = analyse(network)
    (slices,) = [s for s in analysis.slices if s.tensor == "0.weight" and s.axis == 0]
    keep = torch.ones(analysis.components, dtype=torch.bool).numpy()
    keep[slices.component[channels]] = False
    return apply(network, analysis, keep), kept_indices(analysis, keep)


def batches(network, count, size=64):
    return [network.random_inputs(size, seed) for seed in range(count)]


def test_statistics_are_those_of_the_values_in_front_of_each_batch_norm():
    network = small_network()
    (inputs,) = data = batches(network, 1)
    found = statistics(network, data, CPU)
    first = torch.conv2d(inputs[0], network.tensors["0.weight"], network.tensors["0.bias"])
    assert torch.allclose(found["1.running_mean"].mean.float(), first.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(found["1.running_mean"].var.float(), first.var((0, 2, 3), correction=0), atol=1e-5)
    normalised = torch.batch_norm(
        first, network.tensors["1.weight"], network.tensors["1.bias"], None, None, True, 0.0, 1e-5, False
    )
    second = torch.conv2d(normalised.relu(), network.tensors["3.weight"], network.tensors["3.bias"])
    assert torch.allclose(found["4.running_mean"].mean.float(), second.mean((0, 2, 3)), atol=1e-4)


def test_statistics_of_several_batches_are_those_of_their_union_for_the_first_layer():
    network = small_network()
    data = batches(network, 3)
    union = statistics(network, [(torch.cat([inputs[0] for inputs in data]),)], CPU)["1.running_mean"]
    parts = statistics(network, data, CPU)["1.running_mean"]
    assert torch.allclose(parts.mean, union.mean, atol=1e-5) and torch.allclose(parts.var, union.var, atol=1e-5)


def test_transfer_changes_nothing_where_nothing_changed():
    network = small_network()
    found = statistics(network, batches(network, 2), CPU)
    moved = transfer(network, found, found, kept_channels(network, {}))
    for name, tensor in network.tensors.items():
        assert torch.allclose(moved.tensors[name], tensor, atol=1e-6), name


def test_transfer_follows_the_formula_on_the_kept_channels():
    original = small_network()
    network, kept = prune(original, [1, 4])
    rows = kept_channels(original, kept)
    assert rows["1.running_mean"].tolist() == [0, 2, 3, 5] and rows["4.running_mean"].tolist() == [0, 1, 2, 3, 4]
    data = batches(network, 2)
    now, before = statistics(network, data, CPU), statistics(original, data, CPU)
    moved = transfer(network, now, before, rows)
    name, var_name = "4.running_mean", "4.running_var"
    ratio = now[name].var / before[name].var
    expected_mean = now[name].mean + (network.tensors[name] - before[name].mean) * ratio.sqrt()
    assert torch.allclose(moved.tensors[name].double(), expected_mean, rtol=1e-4)
    assert torch.allclose(moved.tensors[var_name].double(), network.tensors[var_name] * ratio, rtol=1e-4)
    assert (ratio < 0.95).any(), "pruning must have changed something for this test to mean anything"
    assert torch.allclose(moved.tensors["1.running_mean"], network.tensors["1.running_mean"], atol=1e-6)
    unchanged = [n for n in network.tensors if "running" not in n]
    assert all(torch.equal(moved.tensors[n], network.tensors[n]) for n in unchanged)


def test_a_channel_without_variance_stays_finite():
    network = small_network()
    dead = network.with_tensors({**network.tensors, "0.weight": network.tensors["0.weight"] * 0})
    data = batches(network, 1)
    moved = transfer(dead, statistics(dead, data, CPU), statistics(network, data, CPU), kept_channels(network, {}))
    assert all(tensor.isfinite().all() for tensor in moved.tensors.values())


def test_a_freshly_initialised_batch_norm_is_transferred_like_any_other():
    original = small_network()
    fresh = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}
    fresh = {f"1.{name}": torch.full((6,), value) for name, value in fresh.items()}
    original = original.with_tensors({**original.tensors, **fresh})
    network, kept = prune(original, [0, 5])
    recovered = recover(network, original, None, RecoveryConfig(), kept=kept, seed=0)
    assert recovered.details["batch_norm"]["layers"] == 2 and recovered.details["batch_norm"]["kept"]


def with_twins(network, first, second):
    """The network with two channels of its first batch-norm equal in every vector."""
    names = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    twins = {name: network.tensors[name].clone() for name in names}
    for vector in twins.values():
        vector[second] = vector[first]
    return network.with_tensors({**network.tensors, **twins})


@pytest.mark.parametrize("removed", [2, 4])
def test_of_two_channels_with_equal_values_the_one_that_was_kept_is_meant(removed):
    original = with_twins(small_network(), 2, 4)
    network, kept = prune(original, [removed])
    data = batches(network, 2)
    now, before = statistics(network, data, CPU), statistics(original, data, CPU)
    moved = transfer(network, now, before, kept_channels(original, kept))
    for name in ("1.running_mean", "1.running_var"):
        assert torch.allclose(moved.tensors[name], network.tensors[name], rtol=1e-4), name


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1])
def test_every_seed_gives_noise_of_its_own(seed):
    network = small_network()
    drawn = [_noise(network, 64, seed, stream)[0][0] for stream in (0, 1)] + [_noise(network, 64, seed ^ 1, 0)[0][0]]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert torch.equal(drawn[0], _noise(network, 64, seed, 0)[0][0])


@pytest.mark.parametrize(("macs", "examples"), [(1e6, 256), (2e9, 125), (1e11, 32)])
def test_statistics_of_a_large_network_are_of_fewer_examples(monkeypatch, macs, examples):
    costs = dataclasses.replace(profile(small_network()).costs, macs=int(macs))
    monkeypatch.setattr("core.recovery.corrections.profile", lambda network: SimpleNamespace(costs=costs))
    assert statistics_examples(small_network(), torch.device("cpu")) == examples


def test_the_largest_seed_recovers_without_data():
    network, kept = pruned_and_kept()
    recovered = recover(network, trained_network(), None, RecoveryConfig(), kept=kept, seed=2**63 - 1)
    assert recovered.details["batch_norm"]["kept"]


def test_the_guard_sees_a_better_and_a_worse_correction():
    original, (network, kept) = trained_network(), pruned_and_kept()
    rows = kept_channels(original, kept)
    data = [original.random_inputs(256, 0)]
    held_out = [original.random_inputs(256, 1)]
    now, before = statistics(network, data, CPU), statistics(original, data, CPU)
    without, with_transfer = transfer_guard(network, original, now, before, rows, held_out, CPU)
    assert with_transfer < 0.95 * without
    wrong = {name: type(found)(found.mean + 3, found.var / 50, found.var_name) for name, found in now.items()}
    without_again, with_wrong = transfer_guard(network, original, wrong, before, rows, held_out, CPU)
    assert without_again == without and with_wrong > without


class TestWithoutLabels:
    def test_without_data_accuracy_rises_and_only_running_statistics_change(self, tmp_path):
        dataset = load_dataset(save_digits(tmp_path))
        recovered = recover(
            pruned_network(), trained_network(), None, RecoveryConfig(), kept=pruned_and_kept()[1], seed=0
        )
        before, after = (accuracy(n, dataset.test, dataset) for n in (pruned_network(), recovered.network))
        assert recovered.details["batch_norm"]["kept"] and after > before + 0.1
        for name, tensor in pruned_network().tensors.items():
            assert torch.equal(recovered.network.tensors[name], tensor) or "running" in name, name
        assert recovered.accuracy_after is None and recovered.validation_drop is None

    def test_without_data_the_result_depends_on_the_seed_alone(self):
        first, again, other = (
            recover(
                pruned_network(), trained_network(), None, RecoveryConfig(), kept=pruned_and_kept()[1], seed=seed
            ).network.tensors
            for seed in (3, 3, 4)
        )
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)

    def test_unlabelled_images_are_used_and_judged_by_the_output_error(self, tmp_path):
        labelled = load_dataset(save_digits(tmp_path))
        images, _, split = digits()
        np.savez(tmp_path / "unlabelled.npz", x=images, split=split)
        dataset = load_dataset(tmp_path / "unlabelled.npz")
        recovered = recover(
            pruned_network(), trained_network(), dataset, RecoveryConfig(epochs=0), kept=pruned_and_kept()[1], seed=0
        )
        errors = recovered.details["output_error"]
        assert errors["batch_norm_transfer"] < errors["pruned"]
        before, after = (accuracy(n, labelled.test, labelled) for n in (pruned_network(), recovered.network))
        assert after > before + 0.1

    def test_a_network_without_batch_norm_comes_back_as_it_is_with_the_reason(self):
        original = plain_network()
        network = original.with_tensors({**original.tensors, "0.weight": original.tensors["0.weight"] * 0.5})
        recovered = recover(network, original, None, RecoveryConfig(), kept={}, seed=0)
        assert recovered.network is network and "no batch-norm" in recovered.details["batch_norm"]["reason"]

    def test_an_unchanged_network_is_left_alone(self):
        recovered = recover(trained_network(), trained_network(), None, RecoveryConfig(), kept={}, seed=0)
        assert recovered.network is trained_network() and recovered.details["method"] == "none"


@pytest.mark.parametrize("worse", [True, False])
def test_a_correction_that_raises_the_output_error_is_not_kept(monkeypatch, worse):
    errors = (1.0, 1.1) if worse else (1.0, 0.9)
    monkeypatch.setattr("core.recovery.pipeline.transfer_guard", lambda *arguments: errors)
    recovered = recover(pruned_network(), trained_network(), None, RecoveryConfig(), kept=pruned_and_kept()[1], seed=0)
    assert (recovered.network is pruned_network()) == worse
    assert recovered.details["batch_norm"]["kept"] != worse
