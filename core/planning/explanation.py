"""Explanation: one or two sentences on how a plan uses its caps, for the report."""

from __future__ import annotations

import numpy as np

from core.budget import Constraint
from core.planning.reach import name_of
from core.planning.search import PROMISED, Problem, use


def binding_constraint(problem: Problem, levels: np.ndarray) -> Constraint | None:
    """The cap that is used most, or None where no cap made anything leave."""
    if _whole(problem, levels):
        return None
    costs = problem.costs(levels)
    return max(problem.constraints, key=lambda constraint: use(costs, constraint), default=None)


def explain(problem: Problem, levels: np.ndarray) -> str:
    """Which cap bound, how much of it is used, and why not more where that is over 1 % below it."""
    whole = _whole(problem, levels)
    if not problem.constraints:
        return "No cap was given; nothing was removed." if whole else "No cap was given; the widths are the given ones."
    binding = binding_constraint(problem, levels)
    if whole and problem.fits(levels):
        return "The network already fits every cap; nothing was removed."
    if binding is None or not problem.fits(levels):
        return _out_of_reach(problem, levels)
    costs = problem.costs(levels)
    share = use(costs, binding)
    sentence = f"The cap on {name_of(binding)} binds: {binding.value(costs):,} of {binding.limit:,} are used ({_percent(share)})."
    if share >= PROMISED:
        return sentence
    if (levels == problem.lattice.top).all():
        return f"{sentence} The widths and limits that were given leave no more to use."
    return f"{sentence} {_granularity(problem, levels)}"


def _whole(problem: Problem, levels: np.ndarray) -> bool:
    return bool((problem.lattice.widths(levels) == problem.analysis.full_widths).all())


def _out_of_reach(problem: Problem, levels: np.ndarray) -> str:
    costs = problem.costs(levels)
    return " ".join(
        f"The cap on {name_of(c)} is out of reach: {c.value(costs):,} where {c.limit:,} is the limit."
        for c in problem.constraints
        if not c.met_by(costs)
    )


def _granularity(problem: Problem, levels: np.ndarray) -> str:
    """Name the step that would exceed a cap least: the network can only move in such steps."""
    lattice = problem.lattice
    nearest = None
    for group in np.flatnonzero(levels < lattice.top).tolist():
        raised = levels.copy()
        raised[group] += 1
        if not lattice.holds_ceilings(raised):
            continue
        costs = problem.costs(raised)
        over = max(problem.constraints, key=lambda constraint: use(costs, constraint))
        if nearest is None or use(costs, over) < nearest[0]:
            count = int(lattice.widths(raised)[group] - lattice.widths(levels)[group])
            nearest = use(costs, over), over, over.value(costs), count, problem.analysis.groups[group].label
    if nearest is None:
        return "The limits that were given leave no more to use."
    _, over, value, count, layer = nearest
    channels = "the next channel" if count == 1 else f"the next {count} channels"
    return (
        f"The network moves in steps that are larger than the rest: returning {channels} of {layer}, the smallest step, "
        f"would make {name_of(over)} {value:,}, above {over.limit:,}."
    )


def _percent(share: float) -> str:
    """Never rounded up to a full cap."""
    return f"{int(share * 1e4) / 100:.2f} %"
