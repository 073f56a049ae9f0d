"""Reach: how small the network can become, and what to say when that is not small enough.

Costs fall with every width. So where each floor is the bottom of one ladder, the bottom of all ladders is the smallest
network under every cap at once, by proof. Groups that share a floor leave a choice, which depends on what is to be
small: they are pushed down one after another, the largest saving per channel of the shared floor first, then exchanged
for one another as long as that helps; branch and bound proves the result or finds a smaller one, if it ends in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.budget import Constraint, Costs
from core.errors import EngineError
from core.planning.search import Problem

_MOST_BRANCHES = 4000


@dataclass(frozen=True, eq=False)
class Smallest:
    """The rungs of the smallest network, and whether it is proven that there is no smaller one."""

    levels: np.ndarray
    proven: bool


def smallest(problem: Problem, constraints: Sequence[Constraint]) -> Smallest:
    """The rungs that use least of the cap in `constraints` that is hardest to meet."""
    sharing = problem.lattice.sharing_groups()
    levels = np.zeros_like(problem.lattice.top)
    levels[sharing] = problem.lattice.top[sharing]
    found = _exchange(problem, constraints, _push_down(problem, constraints, levels, sharing), sharing)
    return _branch(problem, constraints, levels, found, sharing)


def _key(problem: Problem, constraints: Sequence[Constraint], levels: np.ndarray) -> tuple[float, ...]:
    """What is to be small: what a user's ceilings are exceeded by, the use of the hardest cap, then of all."""
    costs = problem.costs(levels)
    # A cap of 0 cannot be met, but can still be missed by less.
    shares = [constraint.value(costs) / max(1, constraint.limit) for constraint in constraints]
    return max([1.0, *problem.lattice.ceiling_uses(levels)]), max(shares, default=0.0), sum(shares)


def _push_down(
    problem: Problem, constraints: Sequence[Constraint], levels: np.ndarray, groups: Sequence[int]
) -> np.ndarray:
    """Each of `groups` once, as far as the others leave it, the largest saving per channel first."""
    levels, waiting = levels.copy(), list(groups)
    while waiting:
        before, lowest = _key(problem, constraints, levels), problem.lattice.lowest_levels(levels)
        savings = [(_saving(problem, constraints, levels, before, group, lowest[group]), -group) for group in waiting]
        group = -max(savings)[1]
        levels[group] = lowest[group]
        waiting.remove(group)
    return levels


def _saving(
    problem: Problem,
    constraints: Sequence[Constraint],
    levels: np.ndarray,
    before: tuple[float, ...],
    group: int,
    lowest: int,
) -> tuple[float, ...]:
    """Saved use per channel that the shared floors lose when `group` goes down to rung `lowest`."""
    if levels[group] == lowest:
        return (0.0,) * len(before)
    lower = levels.copy()
    lower[group] = lowest
    after, ladder = _key(problem, constraints, lower), problem.lattice.ladders[group]
    channels = float((ladder[levels[group]] - ladder[lowest]) * problem.lattice.channels[:, group].max())
    return tuple((old - new) / channels for old, new in zip(before, after, strict=True))


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


def _branch(
    problem: Problem, constraints: Sequence[Constraint], start: np.ndarray, found: np.ndarray, groups: Sequence[int]
) -> Smallest:
    """Depth-first branch and bound over the rungs of `groups`, from their tops in `start`; `found` is known.

    Bound: every open group as low as it could go if it alone went down. Where that bound holds all floors, it is itself
    the best of its branch.
    """
    lattice = problem.lattice
    order = sorted(groups, key=lambda group: (-int(lattice.channels[:, group].sum() * lattice.top[group]), group))
    best, best_key = found, _key(problem, constraints, found)
    branches = 0
    stack = [(start, 0)]
    while stack:
        levels, depth = stack.pop()
        branches += 1
        if branches > _MOST_BRANCHES:
            return Smallest(best, proven=False)
        lowest = lattice.lowest_levels(levels)
        bound = levels.copy()
        bound[order[depth:]] = lowest[order[depth:]]
        key = _key(problem, constraints, bound)
        if key >= best_key:
            continue
        if lattice.holds_floors(bound):
            best, best_key = bound, key
            continue
        group = order[depth]
        for level in range(int(levels[group]), int(lowest[group]) - 1, -1):
            child = levels.copy()
            child[group] = level
            stack.append((child, depth + 1))
    return Smallest(best, proven=True)


def _doubling(last: int) -> list[int]:
    """1, 2, 4, … and `last`."""
    return sorted({2**power for power in range(last.bit_length())} | {last} - {0})


@dataclass(frozen=True, eq=False)
class Reach:
    """What can be reached: caps lowered or raised to their own smallest value, and the smallest of every figure."""

    caps: tuple[Constraint, ...]
    figures: dict[str, int]
    proven: bool

    @staticmethod
    def of(problem: Problem, nearest: Smallest) -> Reach:
        """nearest: the network nearest to all caps together."""
        points = [nearest]
        if problem.lattice.sharing_groups() and len(problem.constraints) > 1:
            points += [smallest(problem, [constraint]) for constraint in problem.constraints]
        costs = [problem.costs(point.levels) for point in points]
        return Reach(
            caps=tuple(replace(c, limit=min(c.value(point) for point in costs)) for c in problem.constraints),
            figures={name: min(point.as_dict()[name] for point in costs) for name in costs[0].as_dict()},
            proven=all(point.proven for point in points),
        )


def infeasible(
    problem: Problem, nearest: Smallest, *, thinnest: Costs | None = None, given: bool = False
) -> EngineError:
    """Say for every cap that is out of reach what can be reached and what to do.

    nearest: the network nearest to all caps. thinnest: costs where floors and rounding are given up. given: whether a
    user's own widths leave no more.
    """
    reach = Reach.of(problem, nearest)
    costs = problem.costs(nearest.levels)
    pairs = list(zip(problem.constraints, reach.caps, strict=True))
    missed = [(cap, own.limit) for cap, own in pairs if own.limit > cap.limit]
    sentences = []
    if not missed:
        # Each cap can be met, but by different networks.
        missed = [(cap, cap.value(costs)) for cap in problem.constraints if not cap.met_by(costs)]
        sentences.append("The caps cannot be met together; the nearest network misses these")
    sentences += [_sentence(problem, cap, value, reach.proven, given) for cap, value in missed]
    thinner = thinnest and [
        f"{name_of(cap)} {cap.value(thinnest):,}" for cap, value in missed if cap.value(thinnest) < value
    ]
    if thinner:
        sentences.append(f"Thinner layers (min_channels 1 and round_to 1) would reach {', '.join(thinner)}")
    return EngineError(
        "target_infeasible",
        ". ".join(sentences) + ".",
        param="/plan" if given else f"/budget/{missed[0][0].metric}",
        details={
            "costs": costs.as_dict(),
            "smallest": reach.figures,
            "constraints": [
                {**cap.as_dict(costs), "value": own.limit, "met": own.limit <= cap.limit} for cap, own in pairs
            ],
        },
    )


def _sentence(problem: Problem, cap: Constraint, value: int, proven: bool, given: bool) -> str:
    original = cap.value(problem.costs_of(problem.analysis.full_widths))
    steps = math.ceil(1e4 * value / original)
    if math.floor(steps / 1e4 * original) < value:
        steps += 1
    ratio = f" (max_ratio {steps / 1e4:g})" if steps < 1e4 else ""
    if given:
        return (
            f"With the widths of the given plan, {name_of(cap)} is at least {value:,}, above the cap of {cap.limit:,}; "
            f"give narrower layers or raise this cap{ratio}"
        )
    known = "is possible with" if proven else "was found with"
    return (
        f"{name_of(cap)} at most {cap.limit:,} is out of reach: {value:,} is the smallest that {known} the layers' floors; "
        f"raise this cap to at least {value:,}{ratio}"
    )


def name_of(constraint: Constraint) -> str:
    """`macs`, `memory (activations)`."""
    return f"memory ({constraint.kind or 'total'})" if constraint.metric == "memory" else constraint.metric
