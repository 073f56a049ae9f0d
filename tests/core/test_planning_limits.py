"""Limits of single layers, given widths and the ranking: a plan keeps them exactly, or the request is refused by name."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.analysis import Group, LayerWidth
from core.budget import Budget, Cap, Constraint
from core.errors import EngineError
from core.planning import LayerLimits, Plan, PlanOptions, plan_widths, smallest_plan
from tests.core.synthetic_analysis import SyntheticAnalysis, random_analysis

METRICS = [("params", None), ("macs", None), ("flops", None), ("memory", "total"), ("memory", "activations")]
seeds = st.integers(0, 10_000)
ratios = st.lists(
    st.tuples(st.sampled_from(METRICS), st.floats(0.2, 0.97)), min_size=1, max_size=3, unique_by=lambda one: one[0][0]
)


def budget_of(entries) -> Budget:
    return Budget(tuple(Cap(metric, max_ratio=ratio, kind=kind) for (metric, kind), ratio in entries))


def scores_of(analysis: SyntheticAnalysis, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(analysis.components)


def drawn_limits(analysis: SyntheticAnalysis, seed: int) -> tuple[LayerLimits, ...]:
    """Limits that may or may not be possible together."""
    rng = np.random.default_rng(seed)
    limits = []
    for layer in analysis.layers:
        kind = rng.integers(0, 6)
        if not layer.width:
            continue
        low, high = sorted(rng.integers(1, layer.width + 1, 2).tolist())
        if kind == 0:
            limits.append(LayerLimits(layer.name, freeze=True))
        elif kind == 1:
            limits.append(LayerLimits(layer.name, min=low, max=high))
        elif kind == 2:
            limits.append(LayerLimits(layer.name, max=high))
        elif kind == 3:
            limits.append(LayerLimits(layer.name, min=low))
    return tuple(limits)


def widths_by_layer(analysis: SyntheticAnalysis, plan: Plan) -> dict[str, int]:
    names = [layer.name for layer in analysis.layers]
    return dict(zip(names, analysis.layer_widths(plan.widths).tolist(), strict=True))


@given(seeds, st.booleans(), ratios, st.sampled_from([1, 2, 4]), st.sampled_from(["global", "per_layer"]))
@settings(max_examples=150, deadline=None)
def test_caps_and_limits_hold_together_or_the_request_is_refused(seed, shared, entries, round_to, ranking):
    analysis = random_analysis(seed, groups=3, widest=5, shared=shared)
    constraints = budget_of(entries).constraints(analysis.costs(analysis.full_widths))
    limits = drawn_limits(analysis, seed)
    options = PlanOptions(round_to=round_to, ranking=ranking, layers=limits)
    try:
        plan = plan_widths(analysis, scores_of(analysis, seed), constraints, options)
    except EngineError as refusal:
        assert refusal.code in ("target_infeasible", "invalid_request")
        if refusal.code == "invalid_request" and round_to == 1:
            assert not any(allowed(analysis, limits, analysis.layer_widths(w)) for w in all_widths(analysis))
        return
    assert all(c.met_by(plan.predicted) for c in constraints)
    assert plan.predicted == analysis.costs(plan.widths)
    assert limits_hold(analysis, limits, analysis.layer_widths(plan.widths))
    again = plan_widths(analysis, scores_of(analysis, seed), constraints, options)
    assert (again.keep == plan.keep).all()
    for layer in plan.layers:
        assert layer.smallest <= layer.after <= layer.largest <= layer.before
        assert widths_by_layer(analysis, plan)[layer.name] == layer.after


def limits_hold(analysis: SyntheticAnalysis, limits: tuple[LayerLimits, ...], widths: np.ndarray) -> bool:
    full = analysis.layer_widths(analysis.full_widths)
    index = {layer.name: position for position, layer in enumerate(analysis.layers)}
    for limit in limits:
        width, whole = int(widths[index[limit.name]]), int(full[index[limit.name]])
        if limit.freeze and width != whole:
            return False
        if width < min(limit.min or 0, whole) or (limit.max is not None and width > limit.max):
            return False
    return bool(((widths > 0) | (full == 0)).all())


def allowed(analysis: SyntheticAnalysis, limits: tuple[LayerLimits, ...], widths: np.ndarray) -> bool:
    """Whether the limits hold, and the default floors of all layers that have no floor of their own."""
    own = {limit.name for limit in limits if limit.freeze or limit.min is not None}
    most = {limit.name: limit.max for limit in limits if limit.max is not None}
    floors = [
        0 if layer.name in own else min(PlanOptions().floor(layer.width), most.get(layer.name, layer.width))
        for layer in analysis.layers
    ]
    return limits_hold(analysis, limits, widths) and bool((widths >= floors).all())


def all_widths(analysis: SyntheticAnalysis):
    return (np.array(one) for one in itertools.product(*(range(full + 1) for full in analysis.full_widths)))


@given(seeds, st.booleans(), ratios)
@settings(max_examples=100, deadline=None)
def test_a_plan_sent_back_unchanged_is_the_same_plan(seed, shared, entries):
    analysis = random_analysis(seed, groups=4, widest=12, shared=shared)
    constraints = budget_of(entries).constraints(analysis.costs(analysis.full_widths))
    scores = scores_of(analysis, seed)
    try:
        plan = plan_widths(analysis, scores, constraints, PlanOptions())
    except EngineError:
        assume(False)
    sent = {layer.name: layer.after for layer in plan.layers}
    again = plan_widths(analysis, scores, constraints, PlanOptions(), given=sent)
    assert (again.keep == plan.keep).all()
    assert (again.predicted, again.layers) == (plan.predicted, plan.layers)


@given(seeds, st.booleans(), ratios)
@settings(max_examples=100, deadline=None)
def test_an_edited_plan_has_exactly_its_widths_and_the_rest_lands_under_the_caps(seed, shared, entries):
    analysis = random_analysis(seed, groups=4, widest=10, shared=shared)
    constraints = budget_of(entries).constraints(analysis.costs(analysis.full_widths))
    scores, rng = scores_of(analysis, seed), np.random.default_rng(seed)
    # Widths of layers of any network that holds the floors are widths that can be asked for.
    drawn = [rng.integers(1, analysis.full_widths + 1) for _ in range(20)]
    drawn = [widths for widths in drawn if analysis.holds_floors(widths, PlanOptions())]
    assume(drawn)
    wanted = dict(zip((one.name for one in analysis.layers), analysis.layer_widths(drawn[0]).tolist(), strict=True))
    asked = {name: out for name, out in wanted.items() if rng.random() < 0.5}
    try:
        plan = plan_widths(analysis, scores, constraints, PlanOptions(), given=asked)
    except EngineError as refusal:
        assert refusal.code == "target_infeasible"
        nearest = smallest_plan(analysis, scores, constraints, PlanOptions(), given=asked)
        assert not all(c.met_by(nearest.predicted) for c in constraints)
        assert asked.items() <= widths_by_layer(analysis, nearest).items()
        if asked:
            assert refusal.param == "/plan"
        return
    assert asked.items() <= widths_by_layer(analysis, plan).items()
    assert all(c.met_by(plan.predicted) for c in constraints)


@dataclasses.dataclass(frozen=True, eq=False)
class NamedAnalysis:
    """Two coupled layers of one group (two channels per component), one free layer, one that a split cuts, one fixed."""

    @property
    def full_widths(self) -> np.ndarray:
        return np.array([16, 20, 8, 8])

    @property
    def components(self) -> int:
        return 52

    @property
    def groups(self) -> tuple[Group, ...]:
        starts = np.cumsum([0, *self.full_widths])
        labels = ("stage.a", "free", "split", "split")
        return tuple(Group(g, np.arange(starts[g], starts[g + 1]), labels[g]) for g in range(4))

    @property
    def layers(self) -> tuple[LayerWidth, ...]:
        return (
            LayerWidth("stage.a", 32, 0, ((0, 2),)),
            LayerWidth("stage.b", 32, 0, ((0, 2),)),
            LayerWidth("free", 20, 0, ((1, 1),)),
            LayerWidth("split", 16, 0, ((2, 1), (3, 1))),
            LayerWidth("fc", 10, 10, ()),
            LayerWidth("chunk[0]", 8, 0, ((2, 1),)),
        )

    def costs(self, widths: np.ndarray):
        from core.budget import Costs

        macs = int(2 * widths[0] * widths[1] + widths[1] * (widths[2] + widths[3]) + 10 * widths[3])
        return Costs(macs, macs, 4 * macs, int(widths.sum()))


NAMED = NamedAnalysis()
LOOSE = (Constraint("macs", None, 10_000),)
HALF = (Constraint("macs", None, 500),)


def plan_named(*, given=None, layers=(), constraints=HALF, **options) -> Plan:
    limits = tuple(LayerLimits(**entry) for entry in layers)
    return plan_widths(NAMED, np.ones(52), constraints, PlanOptions(layers=limits, **options), given=given)


@pytest.mark.parametrize(
    ("given_widths", "words"),
    [
        ({"stage.c": 8}, "no layer 'stage.c'.*did you mean stage.*stage"),
        ({"chunk[0]": 4}, r"no layer 'chunk\[0\]'"),
        ({"stage.a": 7}, "'stage.a' may have 4 to 32 channels in steps of 2; 7 were given"),
        ({"free": 21}, "'free' may have 4 to 20 channels; 21 were given"),
        ({"free": 2}, "'free' may have 4 to 20 channels; 2 were given"),
        ({"fc": 9}, "'fc' must keep its 10 channels; 9 were given"),
        ({"stage.a": 8, "stage.b": 10}, "'stage.a' and 'stage.b' are coupled.*8 and 10"),
        ({"split": 17}, "'split' may have 4 to 16 channels; 17"),
    ],
)
def test_widths_that_cannot_be_are_refused_by_name_with_what_can_be(given_widths, words):
    with pytest.raises(EngineError, match=words) as refusal:
        plan_named(given=given_widths)
    assert refusal.value.code == "invalid_request" and refusal.value.param.startswith("/plan/layers")


@pytest.mark.parametrize(
    ("layers", "words", "param"),
    [
        ([{"name": "stage", "freeze": True}], "no layer 'stage'.*did you mean stage", "/methods/0/layers/0/name"),
        ([{"name": "free", "min": 21}], "has 20 channels and cannot have at least 21", "/methods/0/layers/0/min"),
        ([{"name": "fc", "max": 9}], "must keep its 10 channels", "/methods/0/layers/0/max"),
        ([{"name": "stage.a", "min": 9, "max": 9}], "2 channels per step", "/methods/0/layers"),
        (
            [{"name": "stage.a", "freeze": True}, {"name": "stage.b", "max": 30}],
            "'stage.a' and 'stage.b' are coupled",
            "/methods/0/layers",
        ),
        ([{"name": "free", "min": 4}, {"name": "free", "max": 5}], "limits twice", "/methods/0/layers/1/name"),
    ],
)
def test_limits_that_cannot_be_are_refused_by_name(layers, words, param):
    with pytest.raises(EngineError, match=words) as refusal:
        plan_named(layers=layers)
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", param)


def test_limits_replace_the_floor_and_reach_coupled_layers():
    plan = plan_named(layers=[{"name": "free", "min": 2, "max": 2}, {"name": "stage.b", "freeze": True}])
    found = {layer.name: (layer.after, layer.smallest, layer.largest) for layer in plan.layers}
    assert found["free"] == (2, 2, 2)
    assert found["stage.a"] == (32, 32, 32)


def test_a_limit_bounds_the_sum_of_a_split_layer():
    plan = plan_named(layers=[{"name": "split", "max": 9}], constraints=LOOSE)
    found = {layer.name: layer for layer in plan.layers}
    assert found["split"].after == 9 and (found["split"].smallest, found["split"].largest) == (4, 9)
    assert found["free"].after == 20 and found["stage.a"].after == 32
    assert "limits that were given leave no more" in plan.note


def test_given_widths_stay_where_the_budget_would_allow_more_and_the_note_says_so():
    plan = plan_named(given={"free": 5, "stage.a": 6, "split": 10}, constraints=HALF)
    assert {layer.name: layer.after for layer in plan.layers} == {
        "stage.a": 6,
        "stage.b": 6,
        "free": 5,
        "split": 10,
        "fc": 10,
    }
    assert "leave no more" in plan.note


def test_given_widths_over_the_cap_are_refused_with_their_cost():
    with pytest.raises(EngineError, match="With the widths of the given plan, macs is at least") as refusal:
        plan_named(given={"free": 20, "stage.a": 32, "split": 16})
    assert (refusal.value.code, refusal.value.param) == ("target_infeasible", "/plan")
    assert refusal.value.details["costs"]["macs"] == NAMED.costs(NAMED.full_widths).macs


def test_layers_of_one_group_say_so():
    groups = {layer.name: layer.group for layer in plan_named().layers}
    assert groups == {
        "stage.a": "stage.a",
        "stage.b": "stage.a",
        "free": "free",
        "split": "split + split (2)",
        "fc": "",
    }


@given(seeds, st.floats(0.2, 0.9))
@settings(max_examples=60, deadline=None)
def test_per_layer_ranking_takes_the_same_share_of_every_layer(seed, ratio):
    analysis = random_analysis(seed, groups=4, widest=200, shared=False)
    analysis = dataclasses.replace(analysis, full_widths=analysis.full_widths + 40)
    full = analysis.full_widths
    constraint = Budget((Cap("params", max_ratio=ratio),)).constraints(analysis.costs(full))
    try:
        plan = plan_widths(
            analysis, scores_of(analysis, seed) ** 4, constraint, PlanOptions(min_channels=1, ranking="per_layer")
        )
    except EngineError:
        assume(False)
    # The common share, up to one channel and what refilling returns.
    common = np.median(plan.widths / full)
    assert (np.abs(plan.widths - common * full) <= 2 + 0.02 * full).all()
