"""Single coefficients under one threshold, onto caps on the delivered form and aims counted by nonzeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.analysis import profile
from core.budget import Budget, Cap
from core.errors import EngineError
from core.methods import get_method
from core.network import Network
from core.penni.bases import Bases
from core.penni.coefficients import CoefficientSearch, aims_of
from core.penni.decomposition import decompose
from core.penni.pruning import Pruning
from core.penni.reduction import reduce_columns
from core.penni.retraining import Alternating, Alternation
from core.penni.rewriting import SharedLayer, trainable
from core.penni.sites import sites
from core.penni.slimming import deliver
from core.penni.sparse import sparse_network_counts
from core.recovery import load_dataset
from tests.core.penni_cases import network_of
from tests.core.recovery_cases import save_digits, trained_network


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.narrow, self.widen = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1)
        self.wide = nn.Conv2d(8, 8, (3, 1), padding=(1, 0))
        self.own = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.widen(torch.relu(self.wide(torch.relu(self.narrow(x)))))
        return self.head(torch.relu(self.own(x)).mean((2, 3)))


class Silenced(nn.Module):
    """With a branch of two convolutions of which the second says nothing, so that nobody reads the first."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.unread, self.silent = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.silent(torch.relu(self.unread(x))))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def bottleneck() -> Network:
    return network_of(Bottleneck())


def loose(network: Network):
    return Budget((Cap("macs", max_ratio=0.999),)).constraints(profile(network).costs)


def test_aims_are_met_and_used_and_caps_stay_dense(bottleneck):
    base = profile(bottleneck).costs
    aims = aims_of(base, 0.6, 0.7)
    reduced = reduce_columns(bottleneck, Pruning(loose(bottleneck), aims, unit="coefficient"), None)
    form = trainable(reduced.network, reduced.shared)
    counts = sparse_network_counts(reduced.network, form, reduced.shared)
    shares = [counts[aim.metric] / aim.limit for aim in aims]
    assert max(shares) <= 1
    assert max(shares) >= 0.95
    delivered = deliver(reduced.network, form, reduced.layers, reduced.dense)
    assert profile(delivered).costs.macs == reduced.costs.macs <= loose(bottleneck)[0].limit
    # 1×1 convolutions are coefficients and delivered as they are; grouped ones are left alone.
    assert {"narrow", "widen", "wide"} <= {layer.site.path for layer in reduced.shared}
    assert {"narrow", "widen"} <= {layer.site.path for layer in reduced.dense}
    assert "own" not in {layer.site.path for layer in reduced.shared}


@pytest.fixture(scope="module")
def dying() -> Network:
    network = network_of(Silenced())
    few = torch.arange(8 * 8 * 3 * 3).view(8, 8, 3, 3) % 29 == 0
    unread, silent = network.tensors["unread.weight"] * few, torch.zeros(8, 8, 3, 3)
    return network.with_tensors({**network.tensors, "unread.weight": unread, "silent.weight": silent})


def test_caps_are_met_where_layers_die_that_were_counted_in_two_stages(dying):
    for ratio in (0.59, 0.62, 0.65):
        caps = Budget((Cap("params", max_ratio=ratio),)).constraints(profile(dying).costs)
        reduced = reduce_columns(dying, Pruning(caps, unit="coefficient"), None)
        assert 0.95 * caps[0].limit < reduced.costs.params <= caps[0].limit


@pytest.mark.parametrize(("params", "macs"), [(0.2, None), (0.44, None), (None, 0.26), (None, 0.38)])
def test_aims_are_met_where_layers_die_that_were_counted_by_their_nonzeros(dying, params, macs):
    aims = aims_of(profile(dying).costs, params, macs)
    reduced = reduce_columns(dying, Pruning(loose(dying), aims, unit="coefficient"), None)
    form = trainable(reduced.network, reduced.shared)
    value = sparse_network_counts(reduced.network, form, reduced.shared)[aims[0].metric]
    assert reduced.report["aims"] == [{"metric": aims[0].metric, "limit": aims[0].limit, "value": value}]
    assert 0.95 * aims[0].limit <= value <= aims[0].limit


def test_the_deviation_rule_is_the_published_threshold_per_layer(bottleneck):
    found = [site for site in sites(bottleneck, pointwise=True) if site.inputs > 4]
    factors = {site.weight: decompose(bottleneck.tensors[site.weight], min(3, site.taps)) for site in found}
    search = CoefficientSearch(bottleneck, found, factors, loose(bottleneck), score="deviation")
    masks = search._masks(search._floor + len(search._sorted) // 2)
    threshold = float(search._sorted[len(search._sorted) // 2])
    for weight, mask in masks.items():
        coefficients = factors[weight].coefficients.double()
        published = coefficients.abs() > threshold * coefficients.std()
        assert bool((published <= mask).all())
        assert int(mask.sum()) - int(published.sum()) <= 1 + mask.numel() // 50


def test_an_aim_out_of_reach_is_refused_with_what_is_the_least(bottleneck):
    aims = aims_of(profile(bottleneck).costs, None, 0.001)
    with pytest.raises(EngineError, match="Counted by nonzeros") as refusal:
        reduce_columns(bottleneck, Pruning(loose(bottleneck), aims, unit="coefficient"), None)
    assert refusal.value.code == "target_infeasible"


def test_numbers_of_single_layers_are_kept_and_unknown_names_refused():
    original = trained_network()
    caps = Budget((Cap("params", max_ratio=0.8),)).constraints(profile(original).costs)
    config = get_method("penni").config({"bases": {"layer3.0.conv2": 2}, "round_to": 4})
    reduced = reduce_columns(original, Pruning(caps, bases=config.start, round_to=4), None)
    assert reduced.report["kernels"]["layer3.0.conv2"] <= 2
    with pytest.raises(EngineError, match=r"'stem' is no convolution.*layer3\.0\.conv2") as refusal:
        reduce_columns(original, Pruning(caps, bases=Bases(layers={"stem": 2})), None)
    assert refusal.value.param == "/methods/0/bases"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(save_digits(tmp_path_factory.mktemp("digits")), seed=0)


def form():
    original = trained_network()
    layers = {
        SharedLayer.of(site, shared): shared
        for site in sites(original)
        if site.inputs > 4
        for shared in [decompose(original.tensors[site.weight], 5)]
    }
    return original, layers, trainable(original, layers)


def test_factors_take_turns_and_the_one_that_rests_does_not_move(dataset):
    original, layers, start = form()
    path = next(iter(layers)).site.path
    turns = Alternation(interval=2)
    assert [turns.trains_coefficients(epoch) for epoch in range(5)] == [True, False, False, True, True]
    first = Alternating(original, dataset, Alternation(epochs=1, penalty=0.0))(start, layers)
    assert torch.equal(first.tensors[f"{path}.basis"], start.tensors[f"{path}.basis"])
    assert not torch.equal(first.tensors[f"{path}.coefficients"], start.tensors[f"{path}.coefficients"])
    assert not torch.equal(first.tensors["bn1.weight"], start.tensors["bn1.weight"])


def test_the_penalty_makes_coefficients_smaller_and_kernels_stay_of_unit_norm(dataset):
    original, layers, start = form()
    paths = [layer.site.path for layer in layers]
    sums = {
        penalty: sum(
            float(trained.tensors[f"{path}.coefficients"].abs().sum())
            for trained in [Alternating(original, dataset, Alternation(epochs=1, penalty=penalty))(start, layers)]
            for path in paths
        )
        for penalty in (0.0, 0.05)
    }
    assert sums[0.05] < 0.9 * sums[0.0]
    both = Alternating(original, dataset, Alternation(epochs=2, penalty=0.0))(start, layers)
    for path in paths:
        assert not torch.equal(both.tensors[f"{path}.basis"], start.tensors[f"{path}.basis"])
        norms = both.tensors[f"{path}.basis"].flatten(1).norm(dim=1)
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
