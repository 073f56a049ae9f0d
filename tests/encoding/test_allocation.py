"""Kernels, groups and bits: what is shared, what is pruned, and where a budget goes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.encoding.allocation import Point, allocate, curve, hull, index_entropy
from core.encoding.kernels import find_kernels, grouped, with_values
from core.encoding.options import EncodingOptions
from core.encoding.sensitivity import sensitivities
from core.encoding.sharing import choices_at, rounded
from core.errors import EngineError
from core.network import Network

CPU = torch.device("cpu")
points = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 40)).map(lambda pair: Point(None, *map(float, pair))),
    min_size=1,
    max_size=5,
)


def network() -> Network:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 5)
    )
    return Network.from_module(layers, {"input": (2, 6, 6)})


def shared(options: EncodingOptions, net: Network | None = None):
    net = net or network()
    groups = grouped(find_kernels(net, options.prune), unified=options.unified)
    return rounded(net, choices_at(groups, options), seed=0).tensors


def test_kernels_are_the_weights_of_convolutions_and_matrices_and_nothing_else():
    kernels = find_kernels(network(), 0)
    assert [(kernel.name, kernel.kind) for kernel in kernels] == [
        ("0.weight", "conv"),
        ("3.weight", "conv"),
        ("5.weight", "dense"),
    ]


@pytest.mark.parametrize("name", ["cws", "pws", "uq", "ecsq"])
@pytest.mark.parametrize("prune", [0.0, 60.0])
@pytest.mark.parametrize("unified", [False, True])
def test_every_quantiser_shares_few_values_and_keeps_pruned_weights_at_exactly_zero(name, prune, unified):
    net = network()
    found = shared(EncodingOptions(name, 8, prune=prune, unified=unified), net)
    for kernel, tensor in found.items():
        values = tensor.values()
        assert values.dtype == np.float32 and values.shape == tuple(net.tensors[kernel].shape)
        assert len(np.unique(values)) <= 8 + (prune > 0)
        assert (np.diff(tensor.codebook) > 0).all()
        if prune:
            magnitude = net.tensors[kernel].abs().numpy()
            pruned = magnitude <= np.percentile(magnitude, prune)
            assert (values[pruned] == 0).all() and (tensor.indices[pruned] == tensor.zero).all()
            assert 0.58 <= (values == 0).mean() <= (0.65 if name != "uq" else 0.95)
    books = {id(tensor.codebook) for tensor in found.values()}
    assert len(books) == (2 if unified else 3)


def test_weights_that_were_zero_stay_zero_without_pruning():
    net = network()
    sparse = net.tensors["3.weight"].clone()
    sparse[::2] = 0
    found = shared(EncodingOptions("cws", 4), net.with_tensors({**net.tensors, "3.weight": sparse}))["3.weight"]
    assert found.zero is not None and (found.values()[::2] == 0).all() and (found.values()[1::2] != 0).all()


def test_a_layer_that_is_all_zero_is_one_value():
    net = network()
    zeros = torch.zeros_like(net.tensors["3.weight"])
    for name in ("cws", "ecsq"):
        found = shared(EncodingOptions(name, 4), net.with_tensors({**net.tensors, "3.weight": zeros}))["3.weight"]
        assert len(found.codebook) == 1 and found.zero == 0


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    net = Network.from_module(Tied(), {"input": (6,)})
    found = shared(EncodingOptions("pws", 4), net)
    replaced = with_values(net, found)
    assert torch.equal(replaced.tensors["one.weight"], torch.from_numpy(found["one.weight"].values()))
    names = [name for name in net.tensors if net.tensors[name].ndim == 2]
    assert len({replaced.tensors[name].data_ptr() for name in names}) == 1


@given(curves=st.lists(points, min_size=1, max_size=4), budget=st.integers(0, 160))
@settings(max_examples=200, deadline=None)
def test_an_allocation_keeps_its_budget_and_comes_near_the_best_there_is(curves, budget):
    picked = allocate(curves, budget)
    cheapest = sum(min(one.bits for one in points) for points in curves)
    spent = sum(one.bits for one in picked)
    if cheapest > budget:
        assert spent == cheapest
        return
    assert spent <= budget
    best = min(
        sum(one.error for one in choice)
        for choice in itertools.product(*curves)
        if sum(one.bits for one in choice) <= budget
    )
    # Greedy on the hulls misses by at most what one step of one curve is worth.
    largest = max(
        (a.error - b.error for points in curves for a, b in itertools.pairwise(hull(points))),
        default=0.0,
    )
    assert best <= sum(one.error for one in picked) <= best + largest


@given(points)
@settings(deadline=None)
def test_a_hull_falls_ever_more_slowly(found):
    kept = hull(found)
    slopes = [(a.error - b.error) / (b.bits - a.bits) for a, b in itertools.pairwise(kept)]
    assert all(slope > 0 for slope in slopes) and slopes == sorted(slopes, reverse=True)
    assert kept[0].bits == min(one.bits for one in found) and kept[-1].error == min(one.error for one in found)


def test_points_of_a_curve_say_their_indices_entropy_and_codebook():
    group = grouped(find_kernels(network(), 50), unified=False)[1]
    for one in curve(group, "ecsq", 16, {"3.weight": 1.0}):
        tensor = group.quantized(one.levels, 0)["3.weight"]
        ideal = index_entropy(tensor.indices) * tensor.indices.size + 32 * len(tensor.codebook)
        assert one.bits == pytest.approx(ideal, rel=1e-6)
        kept = group.kernels[0].values * group.kernels[0].survivors
        assert one.error == pytest.approx(float(((tensor.values() - kept) ** 2).sum()), rel=1e-3, abs=1e-9)


def test_sensitivities_predict_what_an_error_does_to_the_outputs():
    net = network()
    names = ["0.weight", "3.weight", "5.weight"]
    found = sensitivities(net, names, None, seed=0, device=CPU)
    inputs = net.random_inputs(64, 5)
    (wanted,) = net.run(*inputs)
    for name in names:
        weight = net.tensors[name]
        measured = []
        for seed in range(40):
            noise = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            (got,) = net.with_tensors({**net.tensors, name: weight + noise}).run(*inputs)
            measured.append(float((got - wanted).square().sum() / wanted.square().sum() / noise.square().sum()))
        assert found[name] == pytest.approx(np.mean(measured), rel=0.35)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"levels": 0, "quantizer": "cws"}, "levels"),
        ({"levels": 300, "quantizer": "cws"}, "levels"),
        ({"prune": 100.0, "quantizer": "uq"}, "prune"),
        ({"prune": 50.0}, "prune"),
        ({"unified": True}, "unified"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(options, field):
    with pytest.raises(EngineError) as refused:
        EncodingOptions(**options)
    assert refused.value.param == f"/encoding/{field}"
