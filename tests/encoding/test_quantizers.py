"""Quantisers against brute force in float64, and the properties that the papers claim."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.encoding.quantizers import QUANTIZERS, Levels, SortedValues, quantizer
from core.encoding.quantizers.clustering import Clustering
from core.encoding.quantizers.entropy_constrained import EntropyConstrained
from core.encoding.quantizers.uniform import Uniform

GENERATOR = np.random.default_rng(0)
NAMES = sorted(QUANTIZERS)
lists = st.lists(st.floats(-10, 10, width=32, allow_subnormal=False), min_size=1, max_size=60)


def normal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count) * 0.05


def least_error(values: np.ndarray, clusters: int) -> float:
    """The least squared error of all ways to cut the sorted values into `clusters` runs."""
    ordered = np.sort(values)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(ordered)), clusters - 1):
        parts = np.split(ordered, cuts)
        best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in parts))
    return best


@pytest.mark.parametrize("clusters", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_clustering_is_optimal(clusters, seed):
    values = np.round(np.random.default_rng(seed).normal(size=11), 1 + seed)
    found = Clustering(SortedValues.of(values), clusters).at_levels(clusters)
    if len(np.unique(values)) >= clusters:
        assert found.squared_error == pytest.approx(least_error(values, clusters), abs=1e-9)


def test_clustering_far_from_zero_loses_no_digits():
    values = 1000 + np.array([0.0, 0.001, 0.5, 0.501, 0.502, 0.9])
    found = Clustering(SortedValues.of(values), 3).at_levels(3)
    np.testing.assert_allclose(found.codebook, [1000.0005, 1000.501, 1000.9])


@pytest.mark.parametrize("clusters", [3, 16, 40])
def test_clustering_on_a_grid_is_within_its_stated_bound(clusters):
    values = normal(6000)
    ordered = SortedValues.of(values)
    exact = Clustering(ordered, clusters, grid=None)
    merged = Clustering(ordered, clusters, grid=256)
    assert exact.exact and not merged.exact
    moved = np.ptp(values) / 256 / 2
    errors = [np.sqrt(one.at_levels(clusters).squared_error / len(values)) for one in (exact, merged)]
    assert errors[0] <= errors[1] <= errors[0] + 2 * moved


@given(values=lists, levels=st.integers(1, 12), name=st.sampled_from(NAMES))
@settings(max_examples=300, deadline=None)
def test_levels_are_few_ascending_and_account_for_every_value(values, levels, name):
    array = np.array(values)
    found = quantizer(name, SortedValues.of(array), 12).at_levels(levels)
    assert 1 <= len(found) <= levels
    assert (np.diff(found.codebook) > 0).all()
    assert found.counts.sum() == pytest.approx(len(array))
    assert 0 <= found.bits <= np.log2(levels) + 1e-9
    indices = found.indices(array, GENERATOR)
    assert indices.min() >= 0 and indices.max() < len(found)
    if found.thresholds is not None:
        np.testing.assert_array_equal(np.bincount(indices, minlength=len(found)), found.counts)
        errors = (array - found.codebook[indices]) ** 2
        assert errors.sum() == pytest.approx(found.squared_error, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_more_levels_never_cost_more_error_along_a_curve(name):
    curve = quantizer(name, SortedValues.of(normal(2000)), 64).curve()
    errors, bits = [one.squared_error for one in curve], [one.bits for one in curve]
    assert len(curve[-1]) <= 64 and len(curve) > 10
    assert errors[-1] < 0.05 * errors[0] and bits[-1] > 3 > 1.5 > bits[0]
    if name in ("cws", "ecsq"):
        assert all(later <= before * (1 + 1e-6) for before, later in itertools.pairwise(errors))


def test_probabilistic_rounding_has_no_bias():
    values = normal(400)
    levels = quantizer("pws", SortedValues.of(values), 8).at_levels(8)
    draws = 1000
    generator = np.random.default_rng(1)
    rounded = np.stack([levels.codebook[levels.indices(values, generator)] for _ in range(draws)])
    # Each mean lies within five standard errors of its value (and one draw, where chances are small).
    above = np.clip(np.searchsorted(levels.codebook, values, side="right"), 1, len(levels) - 1)
    low, high = levels.codebook[above - 1], levels.codebook[above]
    error = np.sqrt((high - values) * (values - low) / draws)
    bias = rounded.mean(axis=0) - values
    assert (np.abs(bias) <= 5 * error + (high - low) / draws + 1e-12).all()
    assert (bias**2).sum() == pytest.approx((error**2).sum(), rel=0.25)
    assert ((rounded - values) ** 2).sum() / draws == pytest.approx(levels.squared_error, rel=0.02)


def test_probabilistic_rounding_repeats_with_its_seed():
    values = normal(300)
    levels = quantizer("pws", SortedValues.of(values), 4).at_levels(4)
    one, same, other = (levels.indices(values, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_equal_quantiles_are_one_level():
    values = np.repeat([0.0, 1.0], [99, 1])
    levels = quantizer("pws", SortedValues.of(values), 8).at_levels(8)
    np.testing.assert_array_equal(levels.codebook, np.unique(levels.codebook))
    assert np.isfinite(levels.squared_error)
    indices = levels.indices(values, GENERATOR)
    np.testing.assert_array_equal(levels.codebook[indices], values)


@pytest.mark.parametrize("levels", [2, 3, 8, 31])
def test_the_step_of_uq_is_the_smallest_with_so_many_levels(levels):
    values = normal(3000)
    uniform = Uniform(SortedValues.of(values), 64)
    found = uniform.at_levels(levels)
    assert len(found) <= levels
    step = np.diff(found.codebook).min()
    assert 0.0 in found.codebook
    assert len(uniform.at_step(0.99 * step)) > levels
    np.testing.assert_allclose(found.codebook / step, np.round(found.codebook / step), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("most", [1, 2, 8, 32])
def test_no_point_of_a_curve_has_more_values_than_allowed(name, most):
    for seed, count in ((0, 340), (3, 324), (11, 55), (14, 61)):
        points = quantizer(name, SortedValues.of(normal(count, seed)), most).curve()
        assert points and max(map(len, points)) <= most


def test_uq_keeps_weights_of_any_magnitude_apart():
    values = normal(500) * 1e-7
    assert len(Uniform(SortedValues.of(values), 64).at_levels(16)) > 8


def test_ecsq_at_no_price_is_lloyd():
    values = SortedValues.of(normal(500))
    found = EntropyConstrained(values, 6).at_price(0.0)
    middles = (found.codebook[:-1] + found.codebook[1:]) / 2
    np.testing.assert_allclose(found.thresholds, middles, atol=2e-3 * values.variance**0.5)
    counts, first, _ = values.cells(found.thresholds)
    np.testing.assert_allclose(found.codebook, first / counts)


def test_ecsq_lives_by_fewer_cells_and_bits_as_bits_get_dearer():
    path = EntropyConstrained(SortedValues.of(normal(4000)), 64).curve()[::-1]
    assert all(len(later) <= len(before) for before, later in itertools.pairwise(path))
    assert all(later.bits <= before.bits + 1e-9 for before, later in itertools.pairwise(path))
    assert len(path[-1]) == 1


@pytest.mark.parametrize("bits", [1.0, 2.0, 3.5])
def test_ecsq_finds_a_rate_and_comes_near_the_best_possible_there(bits):
    values = SortedValues.of(normal(20000))
    found = EntropyConstrained(values, 64).at_bits(bits)
    assert 0.93 * bits <= found.bits <= bits
    # A Gaussian cannot be told at R bits with less than 2^(−2R) of its variance; scalars lose a quarter of a bit of it.
    share = found.squared_error / len(values) / values.variance
    assert 2 ** (-2 * found.bits) < share < 1.55 * 2 ** (-2 * found.bits)


def test_ecsq_of_scaled_values_is_scaled():
    values = normal(1000)
    one, tiny = (EntropyConstrained(SortedValues.of(v), 16).at_price(0.01) for v in (values, 1e-4 * values))
    np.testing.assert_allclose(1e-4 * one.codebook, tiny.codebook, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [[0.0], [0.3, 0.3, 0.3], [-1.0, 1.0]])
def test_few_values_are_kept_exactly(name, values):
    array = np.array(values)
    found: Levels = quantizer(name, SortedValues.of(array), 8).at_levels(8)
    np.testing.assert_allclose(found.codebook[found.indices(array, GENERATOR)], array, atol=0.2 * (name == "uq"))
    assert quantizer(name, SortedValues.of(array), 8).curve()


def test_values_that_are_not_finite_are_refused():
    for bad in ([], [np.nan, 1.0], [np.inf]):
        with pytest.raises(ValueError, match="finite"):
            SortedValues.of(np.array(bad))
