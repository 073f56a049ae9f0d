"""The planner: choose what stays so that every cap holds, from scores and the analytic costs alone.

scores ─ ranking ──────────────────────┐
floors, limits, given widths ─ lattice ┼─ search ─ plan     never above a cap; within 1 % of the binding one if the
caps ──────────────────────────────────┘      └─── reach    steps allow it; or the proof that floors alone exceed a cap
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.analysis import ChannelAnalysis
from core.budget import Constraint
from core.errors import EngineError
from core.planning.bounds import Bounds, contradiction
from core.planning.given import pinned
from core.planning.lattice import Lattice
from core.planning.options import PlanOptions
from core.planning.plan import Plan, compose_plan
from core.planning.ranking import Ranking
from core.planning.reach import Reach, Smallest, infeasible, smallest
from core.planning.search import LANDED, PROMISED, Problem, along, descent, land
from core.planning.size import SizeTable


def plan_widths(
    analysis: ChannelAnalysis,
    scores: np.ndarray,
    constraints: Sequence[Constraint],
    options: PlanOptions,
    *,
    given: Mapping[str, int] | None = None,
    size: SizeTable | None = None,
) -> Plan:
    """Keep the best-scored channels that fit under every cap.

    scores: float64 per component, finite, not negative, larger = more important. given: output channels of layers whose
    width is not for the planner to choose. size: needed for a cap on the file. A network already within its caps keeps
    everything that is not given.

    Raises EngineError: "target_infeasible" where the floors alone exceed a cap (`details.smallest` has the smallest
    reachable value of every figure, `details.constraints` that of every cap), "invalid_request" for limits or given
    widths that the network cannot have.
    """
    task = _Task.of(analysis, scores, constraints, options, given or {}, size)
    levels, nearest = _land(task.problem)
    if levels is None:
        raise task.refusal(nearest)
    return compose_plan(task.problem, levels, task.bounds)


def smallest_plan(
    analysis: ChannelAnalysis,
    scores: np.ndarray,
    constraints: Sequence[Constraint],
    options: PlanOptions,
    *,
    given: Mapping[str, int] | None = None,
    size: SizeTable | None = None,
) -> Plan:
    """The plan nearest to caps that cannot all be met; those that can be met are."""
    task = _Task.of(analysis, scores, constraints, options, given or {}, size)
    levels, nearest = _land(task.problem)
    if levels is None:
        own = [cap.limit for cap in Reach.of(task.problem, nearest).caps]
        levels, _ = _land(_relaxed(task.problem, own))
    if levels is None:
        # Each cap's own smallest value cannot be had together with the others'.
        costs = task.problem.costs(nearest.levels)
        levels, _ = _land(_relaxed(task.problem, [cap.value(costs) for cap in constraints]))
    return compose_plan(task.problem, nearest.levels if levels is None else levels, task.bounds)


@dataclass(frozen=True, eq=False)
class _Task:
    """A problem with what it was made from. bounds: without the given widths, which `problem` has."""

    problem: Problem
    bounds: Bounds
    options: PlanOptions
    given: Mapping[str, int]

    @staticmethod
    def of(
        analysis: ChannelAnalysis,
        scores: np.ndarray,
        constraints: Sequence[Constraint],
        options: PlanOptions,
        given: Mapping[str, int],
        size: SizeTable | None,
    ) -> _Task:
        bounds = Bounds.of(analysis, options)

        def problem_within(chosen: Bounds) -> Problem:
            lattice = Lattice.of(analysis, chosen, options.round_to)
            per_layer = options.ranking == "per_layer"
            ranking = Ranking.of(analysis, lattice, scores, compared=options.ranking)
            # Trades make shares unequal, so per layer they are only made where the budget's promise needs them.
            enough = PROMISED if per_layer else LANDED
            return Problem(analysis, tuple(constraints), lattice, ranking, size, enough)

        problem = problem_within(bounds)
        if given:
            problem = problem_within(pinned(analysis, bounds, given, lambda: _own_widths(problem)))
        return _Task(problem, bounds, options, given)

    def refusal(self, nearest: Smallest) -> EngineError:
        """Why there is no plan. nearest: the network nearest to all caps."""
        problem = self.problem
        if not problem.lattice.holds_ceilings(nearest.levels):
            return contradiction(
                "The limits of the layers cannot be met together: floors hold more channels than a max allows. Lower the "
                "floors (min_channels), round_to, or raise the max.",
                "/methods/0/layers",
            )
        if self.given:
            return infeasible(problem, nearest, given=True)
        options = replace(self.options, min_channels=1, round_to=1)
        bare = _Task.of(
            problem.analysis, np.ones(problem.analysis.components), problem.constraints, options, {}, problem.size
        ).problem
        return infeasible(problem, nearest, thinnest=bare.costs(smallest(bare, problem.constraints).levels))


def _own_widths(problem: Problem) -> np.ndarray:
    """What the planner chooses by itself, within the caps or as near to them as it comes."""
    levels, nearest = _land(problem)
    return problem.lattice.widths(nearest.levels if levels is None else levels)


def _relaxed(problem: Problem, values: Sequence[int]) -> Problem:
    """Every cap raised to the value that can be reached, where that is above it."""
    caps = [replace(c, limit=max(c.limit, value)) for c, value in zip(problem.constraints, values, strict=True)]
    return replace(problem, constraints=tuple(caps))


def _land(problem: Problem) -> tuple[np.ndarray, None] | tuple[None, Smallest]:
    """Levels that land within every cap; where there are none, the nearest network."""
    top = problem.lattice.top
    if problem.fits(top):
        return top, None
    path = descent(problem)
    if not problem.fits(along(problem, path, len(path))):
        # The score's choice of who holds a shared floor is too large; start from the smallest instead.
        nearest = smallest(problem, problem.constraints)
        if not problem.fits(nearest.levels):
            return None, nearest
        path = descent(problem, nearest.levels)
    return land(problem, path), None
