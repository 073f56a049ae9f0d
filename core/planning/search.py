"""Search: from a ranking and caps to the rungs on which the plan stands.

1. *Threshold.* Steps are taken lowest score first, floors permitting. Costs fall along this path, so the shortest prefix
   that meets **all** caps is bisected.
2. *Refill.* From the threshold back to the best, every step that fits again is undone. This also returns what a cap
   does not depend on, as groups that are not alive at the memory peak.
3. *Trades.* Where that leaves a rest (narrow networks, peaks that jump), one or two groups go a few rungs lower and all
   others refill; the trade that lands at the smallest loss of score is kept.
4. *Enumeration.* A network of so few rungs that all plans can be tried, and on which the trades did not land, gets the
   best of all plans.

Never above a cap. A cost evaluation takes tens of microseconds, so all of this is milliseconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.analysis import ChannelAnalysis
from core.budget import Constraint, Costs
from core.planning.lattice import Lattice
from core.planning.ranking import Ranking
from core.planning.size import SizeTable

# A plan that uses this share of its binding cap has landed.
LANDED = 0.999
# Below this share, trades of two groups at once are tried too: the budget promises to land within 1 %.
PROMISED = 0.99
_DEEPEST_TRADE = 4
_DEEPEST_PAIR = 2
_MOST_TRADES = 2000
_MOST_PLANS = 2000


@dataclass(frozen=True, eq=False)
class Problem:
    """One planning problem: costs, caps, the widths that are allowed, and who leaves first.

    size: where the bytes of the file are to be known; without a cap on them they cost time for nothing. enough: share of
    the binding cap at which the search is content.
    """

    analysis: ChannelAnalysis
    constraints: tuple[Constraint, ...]
    lattice: Lattice
    ranking: Ranking
    size: SizeTable | None = None
    enough: float = LANDED

    def costs(self, levels: np.ndarray) -> Costs:
        return self.costs_of(self.lattice.widths(levels))

    def costs_of(self, widths: np.ndarray) -> Costs:
        costs = self.analysis.costs(widths)
        return costs if self.size is None else replace(costs, size_bytes=self.size.evaluate(widths))

    def fits(self, levels: np.ndarray) -> bool:
        """Whether every cap and every shared ceiling holds."""
        if not self.lattice.holds_ceilings(levels):
            return False
        costs = self.costs(levels)
        return all(constraint.met_by(costs) for constraint in self.constraints)

    def use(self, levels: np.ndarray) -> float:
        """Share of the binding cap that is used."""
        return largest_use(self.costs(levels), self.constraints)


def use(costs: Costs, constraint: Constraint) -> float:
    """Share of a cap that is used; above 1 it is missed."""
    return constraint.value(costs) / constraint.limit if constraint.limit > 0 else float("inf")


def largest_use(costs: Costs, constraints: Sequence[Constraint]) -> float:
    return max((use(costs, constraint) for constraint in constraints), default=0.0)


def descent(problem: Problem, bottom: np.ndarray | None = None) -> np.ndarray:
    """The threshold path: groups in the order in which they go down a rung, floors permitting.

    bottom: rungs below which no group goes (they hold the shared floors); without it the score decides who holds them.
    """
    lattice, ranking = problem.lattice, problem.ranking
    if bottom is not None:
        return ranking.step_group[ranking.step_level >= bottom[ranking.step_group]]
    if not len(lattice.minimum):
        return ranking.step_group
    slack = lattice.channels @ lattice.widths(lattice.top) - lattice.minimum
    stopped = np.zeros(len(lattice.top), dtype=bool)
    sharing = set(lattice.sharing_groups())
    taken = np.ones(len(ranking.step_group), dtype=bool)
    for step, (group, level) in enumerate(zip(ranking.step_group.tolist(), ranking.step_level.tolist(), strict=True)):
        if group not in sharing:
            continue
        ladder = lattice.ladders[group]
        after = slack - lattice.channels[:, group] * (ladder[level + 1] - ladder[level])
        if stopped[group] or (after < 0).any():
            stopped[group] = True
            taken[step] = False
        else:
            slack = after
    return ranking.step_group[taken]


def along(problem: Problem, path: np.ndarray, count: int) -> np.ndarray:
    """Levels after the first `count` steps of `path`."""
    return problem.lattice.top - np.bincount(path[:count], minlength=len(problem.lattice.top))


def land(problem: Problem, path: np.ndarray) -> np.ndarray:
    """Levels that meet all caps and use the binding one as far as the network's steps allow; the path's end must fit."""
    low, high = 0, len(path)
    while low < high:
        middle = (low + high) // 2
        if problem.fits(along(problem, path, middle)):
            high = middle
        else:
            low = middle + 1
    levels = trade(problem, refill(problem, along(problem, path, high)))
    if problem.use(levels) < PROMISED and math.prod((problem.lattice.top + 1).tolist()) <= _MOST_PLANS:
        return _best_of_all(problem)
    return levels


def _best_of_all(problem: Problem) -> np.ndarray:
    """Of all plans within the caps, the one of the highest score among those that land, else the one that comes nearest."""
    best, best_key = None, (-1.0, 0.0)
    for rungs in itertools.product(*(range(top + 1) for top in problem.lattice.top.tolist())):
        levels = np.array(rungs, dtype=np.int64)
        if problem.lattice.holds_floors(levels) and problem.fits(levels):
            key = (min(problem.use(levels), problem.enough), problem.ranking.score_kept(levels))
            if key > best_key:
                best, best_key = levels, key
    return best


def refill(problem: Problem, levels: np.ndarray, locked: Sequence[int] = ()) -> np.ndarray:
    """Undo steps, best first, as long as one fits; groups in `locked` stay. A step that does not fit never will."""
    ranking = problem.ranking
    missing = ranking.step_level >= levels[ranking.step_group]
    missing &= ~np.isin(ranking.step_group, locked)
    waiting = ranking.step_group[missing][::-1]
    while len(waiting):
        count = _longest_fitting(problem, levels, waiting)
        levels = _raised(levels, waiting[:count])
        if count == len(waiting):
            break
        waiting = waiting[count:][waiting[count:] != waiting[count]]
    return levels


def _longest_fitting(problem: Problem, levels: np.ndarray, steps: np.ndarray) -> int:
    """How many of `steps` can be undone together, from the first on. Most calls end at the first: gallop, then bisect."""
    low, reach = 0, 1
    while reach <= len(steps) and problem.fits(_raised(levels, steps[:reach])):
        low, reach = reach, 2 * reach
    high = min(reach, len(steps) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if problem.fits(_raised(levels, steps[:middle])):
            low = middle
        else:
            high = middle
    return low


def _raised(levels: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return levels + np.bincount(steps, minlength=len(levels))


def trade(problem: Problem, levels: np.ndarray) -> np.ndarray:
    """Close the rest that refilling leaves: a group gives up rungs so that others gain, until the plan lands."""
    budget = _MOST_TRADES
    best_use = problem.use(levels)
    while best_use < problem.enough and budget > 0:
        depths = [_singles(problem, levels)]
        if best_use < PROMISED:
            depths.append(_pairs(problem, levels))
        for lowered in depths:
            found, tried = _best_trade(problem, lowered, best_use, budget)
            budget -= tried
            if found is not None:
                levels, best_use = found, problem.use(found)
                break
        else:
            break
    return levels


def _best_trade(
    problem: Problem, lowered: Sequence[np.ndarray], use_before: float, budget: int
) -> tuple[np.ndarray | None, int]:
    """The first of `lowered` (least loss first) that lands after refilling, else the one that comes nearest."""
    best, best_key = None, (use_before, float("inf"))
    tried = 0
    for start, locked in lowered[:budget]:
        tried += 1
        levels = refill(problem, start, locked)
        new_use = problem.use(levels)
        if new_use >= problem.enough:
            return levels, tried
        key = (new_use, problem.ranking.score_kept(levels))
        if key > best_key:
            best, best_key = levels, key
    return best, tried


def _singles(problem: Problem, levels: np.ndarray) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    cuts = ({group: depth} for group in range(len(levels)) for depth in range(1, _DEEPEST_TRADE + 1))
    return _by_loss(problem, levels, cuts)


def _pairs(problem: Problem, levels: np.ndarray) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    groups, depths = range(len(levels)), range(1, _DEEPEST_PAIR + 1)
    cuts = ({a: depth_a, b: depth_b} for a in groups for b in range(a) for depth_a in depths for depth_b in depths)
    return _by_loss(problem, levels, cuts)


def _by_loss(
    problem: Problem, levels: np.ndarray, cuts: Iterator[dict[int, int]]
) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """Levels after each allowed cut with the groups that made it, the smallest loss of score first.

    A cut that saves nothing under any cap makes room for nothing.
    """
    matters = _saving_groups(problem, levels)
    found = []
    for cut in cuts:
        groups = tuple(cut)
        if not matters[list(groups)].all() or any(levels[group] < depth for group, depth in cut.items()):
            continue
        lower = levels.copy()
        for group, depth in cut.items():
            lower[group] -= depth
        if problem.lattice.holds_floors(lower):
            found.append((problem.ranking.score_kept(lower), lower, groups))
    found.sort(key=lambda entry: -entry[0])
    return [(lower, groups) for _, lower, groups in found]


def _saving_groups(problem: Problem, levels: np.ndarray) -> np.ndarray:
    """bool per group: whether its next step down saves anything under any cap."""
    now = problem.costs(levels)
    matters = np.zeros(len(levels), dtype=bool)
    for group in np.flatnonzero(levels):
        lower = levels.copy()
        lower[group] -= 1
        after = problem.costs(lower)
        matters[group] = any(c.value(after) < c.value(now) for c in problem.constraints)
    return matters
