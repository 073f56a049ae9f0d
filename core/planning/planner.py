"""The planner: choose what stays so that every cap holds, from scores and the analytic costs alone.

scores ─ ranking ─┐
floors ─ lattice ─┼─ search ─ plan          never above a cap; within 1 % of the binding one if the steps allow it
caps ─────────────┘      └─── reach         or the proof that the floors alone exceed a cap
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from core.analysis import ChannelAnalysis
from core.budget import Constraint
from core.planning.lattice import Lattice
from core.planning.options import PlanOptions
from core.planning.plan import Plan, compose_plan
from core.planning.ranking import Ranking
from core.planning.reach import Reach, Smallest, infeasible, smallest
from core.planning.search import Problem, along, descent, land


def plan_widths(
    analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
) -> Plan:
    """Keep the best-scored channels that fit under every cap.

    scores: float64 per component, finite, not negative, larger = more important. A network already within its caps
    keeps everything. Raises EngineError("target_infeasible") where the floors alone exceed a cap: `details.smallest`
    has the smallest reachable value of every figure, `details.constraints` that of every cap.
    """
    problem = _problem(analysis, scores, constraints, options)
    levels, nearest = _land(problem)
    if levels is None:
        bare = _problem(analysis, scores, constraints, PlanOptions(min_channels=1, round_to=1))
        raise infeasible(problem, nearest, thinnest=bare.costs(smallest(bare, constraints).levels))
    return compose_plan(problem, levels)


def smallest_plan(
    analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
) -> Plan:
    """The plan nearest to caps that cannot all be met; those that can be met are."""
    problem = _problem(analysis, scores, constraints, options)
    levels, nearest = _land(problem)
    if levels is None:
        own = [cap.limit for cap in Reach.of(problem, nearest).caps]
        levels, _ = _land(_relaxed(problem, own))
    if levels is None:
        # Each cap's own smallest value cannot be had together with the others'.
        costs = problem.costs(nearest.levels)
        levels, _ = _land(_relaxed(problem, [cap.value(costs) for cap in constraints]))
    return compose_plan(problem, nearest.levels if levels is None else levels)


def _relaxed(problem: Problem, values: Sequence[int]) -> Problem:
    """Every cap raised to the value that can be reached, where that is above it."""
    caps = [replace(c, limit=max(c.limit, value)) for c, value in zip(problem.constraints, values, strict=True)]
    return replace(problem, constraints=tuple(caps))


def _problem(
    analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
) -> Problem:
    lattice = Lattice.of(analysis, options)
    return Problem(analysis, tuple(constraints), lattice, Ranking.of(analysis, lattice, scores))


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
