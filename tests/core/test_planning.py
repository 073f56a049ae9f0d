"""The planner never exceeds a cap, uses it up, keeps every floor, and refuses exactly what cannot be reached."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.analysis import Group, LayerWidth, analyse, profile
from core.architectures import build
from core.budget import Budget, Cap, Constraint, Costs
from core.errors import EngineError
from core.methods import get_method
from core.network import Network
from core.planning import PlanOptions, plan_widths, smallest_plan
from core.surgery import apply


@dataclass(frozen=True, eq=False)
class ChainAnalysis:
    """A chain of layers, layer i reading what layer i−1 makes: costs are products of neighbouring widths.

    The planner's view of a network, small enough to enumerate. Every layer is one group of `components` channels.
    """

    full_widths: np.ndarray
    macs: np.ndarray
    maps: np.ndarray

    @property
    def components(self) -> int:
        return int(self.full_widths.sum())

    @property
    def groups(self) -> tuple[Group, ...]:
        starts = np.concatenate([[0], np.cumsum(self.full_widths)])
        return tuple(Group(i, np.arange(starts[i], starts[i + 1]), f"layer{i}") for i in range(len(self.full_widths)))

    @property
    def layers(self) -> tuple[LayerWidth, ...]:
        return tuple(LayerWidth(f"layer{i}", int(w), 0, ((i, 1),)) for i, w in enumerate(self.full_widths))

    def costs(self, widths: np.ndarray) -> Costs:
        inputs = np.concatenate([[3], widths[:-1]])
        params = int((inputs * widths * 9).sum())
        alive = self.maps * widths
        return Costs(params, int((inputs * widths * self.macs).sum()), 4 * params, int((alive[:-1] + alive[1:]).max()))


chains = st.builds(
    lambda widths, seed: ChainAnalysis(
        np.array(widths),
        np.random.default_rng(seed).integers(1, 50, len(widths)),
        np.random.default_rng(seed + 1).integers(1, 50, len(widths)),
    ),
    st.lists(st.integers(4, 24), min_size=2, max_size=5),
    st.integers(0, 1000),
)
caps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                ("params", None),
                ("macs", None),
                ("flops", None),
                ("memory", "total"),
                ("memory", "weights"),
                ("memory", "activations"),
            ]
        ),
        st.floats(0.05, 0.98),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda cap: cap[0],
).map(lambda entries: Budget(tuple(Cap(m, max_ratio=r, kind=k) for (m, k), r in entries)))


def scores_of(analysis: ChainAnalysis, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(analysis.components)


@given(chains, caps, st.integers(0, 99), st.sampled_from([1, 2, 4]))
@settings(max_examples=150, deadline=None)
def test_plan_meets_every_cap_and_floor_or_is_refused(analysis, budget, seed, round_to):
    constraints = budget.constraints(analysis.costs(analysis.full_widths))
    options = PlanOptions(round_to=round_to)
    try:
        plan = plan_widths(analysis, scores_of(analysis, seed), constraints, options)
    except EngineError as refusal:
        assert refusal.code == "target_infeasible"
        nearest = smallest_plan(analysis, scores_of(analysis, seed), constraints, options).predicted
        assert not all(c.met_by(nearest) for c in constraints)
        for constraint, told in zip(constraints, refusal.details["constraints"], strict=True):
            assert told["met"] == constraint.met_by(nearest)
            assert told["met"] or told["value"] == constraint.value(nearest)
        return
    assert all(c.met_by(plan.predicted) for c in constraints)
    assert plan.predicted == analysis.costs(plan.widths)
    assert (plan.widths >= [options.floor(int(w)) for w in analysis.full_widths]).all()
    for width, full in zip(plan.widths.tolist(), analysis.full_widths.tolist(), strict=True):
        # Multiples of round_to, except in a layer with no multiple between its floor and its width.
        first_multiple = -(-options.floor(full) // round_to) * round_to
        assert width == full or width % round_to == 0 or first_multiple >= full
    assert [int(plan.keep[g.components].sum()) for g in analysis.groups] == plan.widths.tolist()


@given(chains, caps, st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_no_single_channel_can_return_to_a_plan(analysis, budget, seed):
    constraints = budget.constraints(analysis.costs(analysis.full_widths))
    try:
        plan = plan_widths(analysis, scores_of(analysis, seed), constraints, PlanOptions())
    except EngineError:
        return
    for group, full in enumerate(analysis.full_widths):
        wider = plan.widths.copy()
        wider[group] += 1
        assert wider[group] > full or not all(c.met_by(analysis.costs(wider)) for c in constraints)


@given(chains, st.floats(0.2, 0.9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_kept_channels_are_the_best_of_their_group(analysis, ratio, seed):
    constraints = Budget((Cap("macs", max_ratio=ratio),)).constraints(analysis.costs(analysis.full_widths))
    scores = scores_of(analysis, seed)
    try:
        plan = plan_widths(analysis, scores, constraints, PlanOptions())
    except EngineError:
        return
    for group in analysis.groups:
        kept, removed = (
            scores[group.components[plan.keep[group.components]]],
            scores[group.components[~plan.keep[group.components]]],
        )
        if len(kept) and len(removed):
            assert kept.min() >= removed.max()


@given(st.lists(st.integers(4, 7), min_size=2, max_size=3), st.integers(0, 50), st.floats(0.3, 0.95))
@settings(max_examples=60, deadline=None)
def test_landing_is_close_to_the_best_of_all_widths(widths, seed, ratio):
    rng = np.random.default_rng(seed)
    analysis = ChainAnalysis(np.array(widths), rng.integers(1, 50, len(widths)), rng.integers(1, 50, len(widths)))
    (constraint,) = Budget((Cap("macs", max_ratio=ratio),)).constraints(analysis.costs(analysis.full_widths))
    options = PlanOptions(min_channels=2)
    reachable = [analysis.costs(np.array(w)).macs for w in itertools.product(*(range(2, full + 1) for full in widths))]
    landed = [macs for macs in reachable if macs <= constraint.limit]
    if not landed:
        with pytest.raises(EngineError):
            plan_widths(analysis, scores_of(analysis, seed), (constraint,), options)
        return
    plan = plan_widths(analysis, scores_of(analysis, seed), (constraint,), options)
    assert plan.predicted.macs >= 0.85 * max(landed)


def test_plan_is_deterministic_when_all_scores_are_equal():
    analysis = ChainAnalysis(np.array([16, 16, 32]), np.array([5, 7, 3]), np.array([4, 4, 2]))
    constraints = Budget((Cap("macs", max_ratio=0.5),)).constraints(analysis.costs(analysis.full_widths))
    plans = [plan_widths(analysis, np.ones(analysis.components), constraints, PlanOptions()) for _ in range(2)]
    np.testing.assert_array_equal(plans[0].keep, plans[1].keep)


def test_network_within_its_caps_keeps_everything():
    analysis = ChainAnalysis(np.array([8, 8]), np.array([1, 1]), np.array([1, 1]))
    costs = analysis.costs(analysis.full_widths)
    plan = plan_widths(analysis, np.ones(16), (Constraint("macs", None, costs.macs),), PlanOptions())
    assert plan.keep.all() and plan.predicted == costs
    assert "nothing was removed" in plan.note


def test_refusal_names_the_cap_the_limit_and_the_smallest_value():
    analysis = ChainAnalysis(np.array([16, 16]), np.array([10, 10]), np.array([1, 1]))
    with pytest.raises(EngineError) as refusal:
        plan_widths(analysis, np.ones(32), (Constraint("macs", None, 7),), PlanOptions())
    smallest = analysis.costs(np.array([4, 4])).macs
    assert refusal.value.code == "target_infeasible" and refusal.value.param == "/budget/macs"
    assert "at most 7" in refusal.value.message and f"{smallest:,}" in refusal.value.message
    assert refusal.value.details["constraints"] == [
        {"metric": "macs", "kind": None, "limit": 7, "value": smallest, "met": False}
    ]


def test_floor_is_a_tenth_but_at_least_four_channels_and_never_more_than_the_layer():
    assert [PlanOptions().floor(width) for width in (2, 4, 16, 64, 65, 512)] == [2, 4, 4, 7, 7, 52]
    assert [PlanOptions(min_channels=8).floor(width) for width in (4, 64)] == [4, 8]


@pytest.fixture(scope="module")
def resnet20():
    torch.manual_seed(0)
    network = Network.from_module(build("cifar_resnet20", {}), {"input": (3, 32, 32)})
    return network, analyse(network), profile(network).costs


@pytest.mark.parametrize(
    "budget",
    [
        (Cap("macs", max_ratio=0.5),),
        (Cap("params", max_ratio=0.3),),
        (Cap("flops", max_ratio=0.4), Cap("params", max_ratio=0.6)),
        (Cap("memory", max_ratio=0.6),),
        (Cap("memory", max_ratio=0.5, kind="weights"),),
        (Cap("macs", max_ratio=0.5), Cap("params", max_ratio=0.4), Cap("memory", max_ratio=0.8)),
    ],
    ids=lambda caps: "+".join(cap.metric + (cap.kind or "") for cap in caps),
)
def test_resnet20_lands_within_one_percent_of_the_binding_cap(resnet20, budget):
    network, analysis, baseline = resnet20
    method = get_method("auto")
    config = method.config({})
    constraints = Budget(budget).constraints(baseline)
    scores = method.scores(network, analysis, config, 0)
    plan = plan_widths(analysis, scores, constraints, method.plan_options(config))
    used = [c.value(plan.predicted) / c.limit for c in constraints]
    assert max(used) <= 1 and max(used) >= 0.99
    assert profile(apply(network, analysis, plan.keep)).costs == plan.predicted


def test_smallest_reported_is_reachable_and_nothing_below_it_is(resnet20):
    _, analysis, _ = resnet20
    scores = np.ones(analysis.components)
    with pytest.raises(EngineError) as refusal:
        plan_widths(analysis, scores, (Constraint("macs", None, 1),), PlanOptions())
    smallest = refusal.value.details["smallest"]["macs"]
    plan = plan_widths(analysis, scores, (Constraint("macs", None, smallest),), PlanOptions())
    assert plan.predicted.macs <= smallest
    with pytest.raises(EngineError):
        plan_widths(analysis, scores, (Constraint("macs", None, plan.predicted.macs - 1),), PlanOptions())
