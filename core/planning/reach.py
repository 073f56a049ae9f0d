"""Reach: how small the network can become, and what to say when that is not small enough.

Costs fall with every width. So where each floor is the bottom of one ladder, the bottom of all ladders is the smallest
network under every cap at once, by proof. Groups that share a floor leave a choice, which depends on what is to be
small: they are pushed down one after another, the largest saving per channel of the shared floor first, and then
exchanged for one another as long as that helps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from core.budget import Constraint, Costs
from core.errors import EngineError
from core.planning.search import Problem, largest_use, use


def smallest_levels(problem: Problem, constraints: Sequence[Constraint]) -> np.ndarray:
    """The rungs that use least of the cap in `constraints` that is hardest to meet."""
    sharing = problem.lattice.sharing_groups()
    levels = np.zeros_like(problem.lattice.top)
    levels[sharing] = problem.lattice.top[sharing]
    levels = _push_down(problem, constraints, levels, sharing)
    return _exchange(problem, constraints, levels, sharing)


def _key(problem: Problem, constraints: Sequence[Constraint], levels: np.ndarray) -> tuple[float, float]:
    """The use of the hardest cap, then of all: what is to be small."""
    costs = problem.costs(levels)
    return largest_use(costs, constraints), sum(use(costs, constraint) for constraint in constraints)


def _push_down(
    problem: Problem, constraints: Sequence[Constraint], levels: np.ndarray, groups: Sequence[int]
) -> np.ndarray:
    """Each of `groups` once, as far as the others leave it, the largest saving per channel first."""
    levels, waiting = levels.copy(), list(groups)
    while waiting:
        before = _key(problem, constraints, levels)
        moves = [(_saving(problem, constraints, levels, before, group), -group) for group in waiting]
        group = -max(moves)[1]
        levels[group] = problem.lattice.lowest_level(levels, group)
        waiting.remove(group)
    return levels


def _saving(
    problem: Problem, constraints: Sequence[Constraint], levels: np.ndarray, before: tuple[float, float], group: int
) -> tuple[float, float]:
    """Saved use per channel that the shared floors lose when `group` goes as low as it may."""
    lower = levels.copy()
    lower[group] = problem.lattice.lowest_level(levels, group)
    lattice = problem.lattice
    left = lattice.widths(levels)[group] - lattice.widths(lower)[group]
    if not left:
        return 0.0, 0.0
    after = _key(problem, constraints, lower)
    channels = float(left * lattice.channels[:, group].max())
    return (before[0] - after[0]) / channels, (before[1] - after[1]) / channels


def _exchange(
    problem: Problem, constraints: Sequence[Constraint], levels: np.ndarray, groups: Sequence[int]
) -> np.ndarray:
    """Raise one group so that those that share a floor with it can go lower, while that makes the network smaller."""
    best, best_key = levels, _key(problem, constraints, levels)
    improved = True
    while improved:
        improved = False
        for group in groups:
            rows = problem.lattice.channels[:, group] > 0
            partners = [g for g in groups if g != group and (problem.lattice.channels[rows, g] > 0).any()]
            for raise_by in _doubling(int(problem.lattice.top[group] - best[group])):
                raised = best.copy()
                raised[group] += raise_by
                candidate = _push_down(problem, constraints, raised, partners)
                key = _key(problem, constraints, candidate)
                if key < best_key:
                    best, best_key, improved = candidate, key, True
                    break
    return best


def _doubling(last: int) -> list[int]:
    """1, 2, 4, … and `last`."""
    return sorted({2**power for power in range(last.bit_length())} | {last} - {0})


def reachable(problem: Problem, nearest: np.ndarray) -> tuple[tuple[Constraint, ...], dict[str, int]]:
    """The caps raised to what can be reached, and the smallest value of every figure, each by itself.

    nearest: rungs of the network nearest to all caps.
    """
    points = [problem.costs(nearest)]
    if problem.lattice.sharing_groups() and len(problem.constraints) > 1:
        points += [problem.costs(smallest_levels(problem, [constraint])) for constraint in problem.constraints]
    smallest = {name: min(point.as_dict()[name] for point in points) for name in points[0].as_dict()}
    lowest = tuple(replace(c, limit=min(c.value(point) for point in points)) for c in problem.constraints)
    return lowest, smallest


def infeasible(problem: Problem, nearest: np.ndarray, thinnest: Costs) -> EngineError:
    """Say for every cap that is out of reach what can be reached and what to do.

    nearest: rungs of the network nearest to all caps. thinnest: costs where floors and rounding are given up.
    """
    lowest, smallest = reachable(problem, nearest)
    missed = [(cap, low.limit) for cap, low in zip(problem.constraints, lowest, strict=True) if low.limit > cap.limit]
    if missed:
        sentences = [_sentence(problem, cap, value) for cap, value in missed]
    else:
        # Each cap can be met, but by different networks.
        costs = problem.costs(nearest)
        missed = [(cap, cap.value(costs)) for cap in problem.constraints if not cap.met_by(costs)]
        sentences = ["The caps cannot be met together; the nearest network misses these"]
        sentences += [_sentence(problem, cap, value) for cap, value in missed]
    thinner = [f"{name_of(cap)} {cap.value(thinnest):,}" for cap, value in missed if cap.value(thinnest) < value]
    if thinner:
        sentences.append(f"Thinner layers (min_channels 1 and round_to 1) would reach {', '.join(thinner)}")
    return EngineError(
        "target_infeasible",
        ". ".join(sentences) + ".",
        param=f"/budget/{missed[0][0].metric}",
        details={
            "smallest": smallest,
            "constraints": [
                {**cap.as_dict(problem.costs(nearest)), "value": low.limit, "met": low.limit <= cap.limit}
                for cap, low in zip(problem.constraints, lowest, strict=True)
            ],
        },
    )


def _sentence(problem: Problem, cap: Constraint, value: int) -> str:
    original = cap.value(problem.costs(problem.lattice.top))
    # Only where floors are shared is the smallest network searched for rather than proven.
    known = "was found with" if problem.lattice.sharing_groups() else "is possible with"
    steps = math.ceil(1e4 * value / original)
    if math.floor(steps / 1e4 * original) < value:
        steps += 1
    ratio = f" (max_ratio {steps / 1e4:g})" if steps < 1e4 else ""
    return (
        f"{name_of(cap)} at most {cap.limit:,} is out of reach: {value:,} is the smallest that {known} the layers' floors; "
        f"raise this cap to at least {value:,}{ratio}"
    )


def name_of(constraint: Constraint) -> str:
    """`macs`, `memory (activations)`."""
    return f"memory ({constraint.kind or 'total'})" if constraint.metric == "memory" else constraint.metric
