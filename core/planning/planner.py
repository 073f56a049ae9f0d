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
from core.planning.reach import infeasible, reachable, smallest_levels
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
    levels, met = _nearest(problem)
    if not met:
        bare = _problem(analysis, scores, constraints, PlanOptions(min_channels=1, round_to=1))
        raise infeasible(problem, levels, thinnest=bare.costs(smallest_levels(bare, constraints)))
    return compose_plan(problem, levels)


def smallest_plan(
    analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
) -> Plan:
    """The plan nearest to caps that cannot all be met; those that can be met are."""
    problem = _problem(analysis, scores, constraints, options)
    levels, met = _nearest(problem)
    if not met:
        lowest, _ = reachable(problem, levels)
        costs = problem.costs(levels)
        # Each cap's own smallest value, or, where these cannot be had together, the values of the nearest network.
        for values in ([low.limit for low in lowest], [cap.value(costs) for cap in constraints]):
            relaxed = [replace(c, limit=max(c.limit, value)) for c, value in zip(constraints, values, strict=True)]
            levels, met = _nearest(replace(problem, constraints=tuple(relaxed)))
            if met:
                break
    return compose_plan(problem, levels)


def _problem(
    analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
) -> Problem:
    lattice = Lattice.of(analysis, options)
    return Problem(analysis, tuple(constraints), lattice, Ranking.of(analysis, lattice, scores))


def _nearest(problem: Problem) -> tuple[np.ndarray, bool]:
    """Levels that land within every cap and True, or the nearest that there are and False."""
    top = problem.lattice.top
    if problem.fits(top):
        return top, True
    path = descent(problem)
    if not problem.fits(along(problem, path, len(path))):
        # The score's choice of who holds a shared floor is too large; start from the smallest instead.
        smallest = smallest_levels(problem, problem.constraints)
        if not problem.fits(smallest):
            return smallest, False
        path = descent(problem, smallest)
    return land(problem, path), True
