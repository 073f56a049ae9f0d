"""Complexity-driven widths: the paper's weights, the draw, exact budgets, and a correct network at the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from core.analysis import analyse
from core.architectures import build
from core.budget import Budget, Cap
from core.choice import Chooser
from core.methods import get_method
from core.methods.complexity import Complexity, mode_of
from core.network import Network
from core.surgery import apply, verify
from tests.core.channel_networks import CifarResNet, InvertedResidual, ShuffleAndDense, Vgg, export

# The published table of VGG-16 on 32×32 images: shares of the thirteen convolutions in percent.
VGG16_SHARES = {
    "params": [0.0, 0.3, 0.5, 1.0, 2.0, 4.0, 4.0, 8.0, 16.0, 16.0, 16.0, 16.0, 16.0],
    "flops": [0.6, 12.1, 6.0, 12.1, 6.0, 12.1, 12.1, 6.0, 12.1, 12.1, 3.0, 3.0, 3.0],
    "memory": [23.7, 23.7, 11.9, 11.9, 5.9, 5.9, 5.9, 3.0, 3.0, 3.0, 0.7, 0.7, 0.7],
}


@pytest.fixture(scope="module")
def resnet() -> Network:
    torch.manual_seed(0)
    return Network.from_module(build("cifar_resnet", {"depth": 8, "width": 8}), {"input": (3, 16, 16)})


def chosen(network: Network, caps: dict[str, float], seed: int = 0, **options):
    chooser = Chooser(network, {"type": "complexity", **options}, seed=seed)
    analysis = analyse(network)
    full = analysis.costs(analysis.full_widths)
    constraints = Budget(tuple(Cap(metric, max_ratio=ratio) for metric, ratio in caps.items())).constraints(full)
    return chooser.choose(constraints), constraints


@pytest.mark.parametrize("mode", list(VGG16_SHARES))
def test_weights_of_the_layers_are_the_published_ones(mode):
    network = Network.from_module(build("cifar_vgg16_bn", {"bias": False}), {"input": (3, 32, 32)})
    analysis = analyse(network)
    found = Complexity.of(network, analysis, mode).per_group(analysis.full_widths)
    assert [group.label.startswith("features.") for group in analysis.groups] == [True] * 13
    np.testing.assert_allclose(100 * found / found.sum(), VGG16_SHARES[mode], atol=0.06)


@pytest.mark.parametrize("mode", ["params", "flops", "memory"])
def test_the_first_draw_follows_the_weights(resnet, mode):
    analysis = analyse(resnet)
    complexity = Complexity.of(resnet, analysis, mode)
    weights = complexity.per_group(analysis.full_widths)
    # Floors that leave one component to take end each run after one draw per group.
    lowest = analysis.full_widths - 1
    rng = np.random.default_rng(7)
    counts = np.zeros(len(weights))
    for _ in range(2000):
        counts[complexity.draws(analysis.full_widths, lowest, rng, None)[0][0]] += 1
    assert chisquare(counts, 2000 * weights / weights.sum()).pvalue > 0.01


def test_weights_are_computed_again_after_every_draw(resnet):
    analysis = analyse(resnet)
    complexity = Complexity.of(resnet, analysis, "params")
    full = analysis.full_widths
    group = int(np.argmax(complexity.per_group(full)))
    halved = full.copy()
    halved[group] //= 2
    before, after = complexity.per_group(full), complexity.per_group(halved)
    assert after[group] < before[group] and (after <= before + 1e-9).all()


def test_coupled_layers_are_drawn_as_one_with_the_sum_of_their_complexities(resnet):
    analysis = analyse(resnet)
    found = Complexity.of(resnet, analysis, "flops").per_group(analysis.full_widths)
    # Every layer with prunable channels counts once, in whatever group it is.
    rows = {}
    for row in analysis.trace.mac_rows:
        rows[row.node] = rows.get(row.node, 0) + row.constant * int(np.prod([len(vector) for vector in row.vectors]))
    classifier = 10 * 32
    # Padded shortcuts leave no channel frozen, so all but the classifier is there.
    assert found.sum() == pytest.approx(sum(rows.values()) - classifier, rel=1e-9)


@pytest.mark.parametrize("name", ["params", "macs", "flops", "memory"])
@pytest.mark.parametrize("ratio", [0.7, 0.4])
def test_the_budget_is_met_and_used(resnet, name, ratio):
    choice, (constraint,) = chosen(resnet, {name: ratio})
    value = constraint.value(choice.plan.predicted)
    assert 0.97 * constraint.limit <= value <= constraint.limit


def test_several_caps_hold_at_once(resnet):
    choice, constraints = chosen(resnet, {"params": 0.6, "flops": 0.5, "memory": 0.7})
    assert all(constraint.met_by(choice.plan.predicted) for constraint in constraints)


@pytest.mark.parametrize("module", [CifarResNet, Vgg, InvertedResidual, ShuffleAndDense])
def test_pruned_networks_agree_with_the_masked_reference(module):
    network = export(module(), 3, 16, 16)
    choice, (constraint,) = chosen(network, {"macs": 0.6})
    pruned = apply(network, choice.analysis, choice.plan.keep)
    assert constraint.met_by(choice.plan.predicted)
    assert verify(network, choice.analysis, choice.plan.keep, pruned, seed=0).passed


def test_a_seed_gives_one_network_and_another_seed_another(resnet):
    first, again, other = (chosen(resnet, {"flops": 0.5}, seed)[0].plan.keep for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


def test_no_layer_falls_below_its_floor(resnet):
    choice, _ = chosen(resnet, {"params": 0.15})
    assert all(layer.after >= min(layer.before, 4) for layer in choice.plan.layers)


def test_widths_are_rounded_where_asked(resnet):
    choice, _ = chosen(resnet, {"params": 0.5}, round_to=4)
    assert all(layer.after % 4 == 0 for layer in choice.plan.layers if layer.group)


def test_by_default_the_filters_with_the_largest_weights_stay():
    network = export(torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3), torch.nn.Conv2d(12, 4, 3)), 3, 8, 8)
    norms = network.tensors["0.weight"].abs().sum((1, 2, 3)) + network.tensors["1.weight"].abs().sum((0, 2, 3))
    choice, _ = chosen(network, {"macs": 0.6})
    kept = choice.plan.keep[next(s for s in choice.analysis.slices if s.tensor == "0.weight" and s.axis == 0).component]
    assert 0 < kept.sum() < 12
    assert norms[torch.from_numpy(kept)].min() >= norms[torch.from_numpy(~kept)].max()


@pytest.mark.parametrize(
    ("caps", "mode"),
    [
        ((Cap("params", max_ratio=0.5),), "params"),
        ((Cap("size", maximum=10_000),), "params"),
        ((Cap("memory", max_ratio=0.5, kind="weights"),), "params"),
        ((Cap("memory", max_ratio=0.5, kind="activations"),), "memory"),
        ((Cap("macs", max_ratio=0.5),), "flops"),
        ((Cap("params", max_ratio=0.9), Cap("flops", max_ratio=0.3)), "flops"),
        ((Cap("params", max_ratio=0.2), Cap("flops", max_ratio=0.3)), "params"),
    ],
)
def test_the_tightest_cap_decides_the_mode(resnet, caps, mode):
    analysis = analyse(resnet)
    full = analysis.costs(analysis.full_widths)
    assert mode_of(analysis, Budget(caps).constraints(full)) == mode


def test_modes_thin_different_layers():
    network = Network.from_module(
        build("cifar_vgg16_bn", {"widths": [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]}),
        {"input": (3, 32, 32)},
    )
    kept = {mode: chosen(network, {"macs": 0.6}, mode=mode)[0].plan for mode in ("params", "memory")}
    first, last = ({mode: plan.layers[index].after for mode, plan in kept.items()} for index in (0, 11))
    assert first["memory"] < first["params"] and last["params"] < last["memory"]


@given(seed=st.integers(0, 2**16), ratio=st.floats(0.3, 0.95), mode=st.sampled_from(["params", "flops", "memory"]))
def test_any_seed_mode_and_ratio_lands_below_the_cap(resnet, seed, ratio, mode):
    choice, (constraint,) = chosen(resnet, {"flops": ratio}, seed, mode=mode)
    assert constraint.met_by(choice.plan.predicted)


def test_scores_are_a_permutation_of_the_draws(resnet):
    analysis, method = analyse(resnet), get_method("complexity")
    found = method.scores(resnet, analysis, method.config({"step": 0.1}), 1)
    members = np.concatenate([group.components for group in analysis.groups])
    assert np.isfinite(found).all() and (found[members] >= 1).all()
