"""The planner: choose widths that land on the budget, from scores and the analytic cost model alone.

1. *Threshold.* Scores are divided by their group's mean, which makes layers comparable; blocks leave in that order, a
   layer's floor permitting. Cost falls along this path, so the shortest prefix that meets **all** caps is bisected.
2. *Refill.* From the threshold back to the best, every block that fits again returns.
3. *Fit.* Where that leaves more than 0.2 % unused (narrow networks, peaks that jump), single groups are made thinner
   and the rest refilled; of the plans that land, the one that keeps the most score wins.

Never above a cap. One cost evaluation takes tens of microseconds, so all of this is milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.analysis import ChannelAnalysis
from core.budget import Constraint, Costs
from core.errors import EngineError
from core.planning.floors import Floors, PlanOptions
from core.planning.plan import Plan, compose_plan, fits, use

# A plan that uses this much of its binding cap has landed.
_LANDED = 0.998
# How many blocks one group gives up at most while the fit looks for a better landing.
_DEEPEST_TRADE = 6


def plan_widths(
    analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
) -> Plan:
    """Keep the best-scored channels that fit under every cap.

    scores: float64 per component, larger = more important. A network already within its caps keeps everything.
    Raises EngineError("target_infeasible") with `details.smallest` where the floors alone exceed a cap.
    """
    search = _Search.of(analysis, scores, constraints, options)
    if fits(analysis.costs(analysis.full_widths), constraints):
        return search.plan(analysis.full_widths)
    path = search.path()
    if not fits(analysis.costs(search.along(path, len(path))), constraints):
        path = search.steepest_path()
        if not fits(analysis.costs(search.along(path, len(path))), constraints):
            raise _infeasible(search)
    removed = _shortest(path, search)
    widths = search.refill(search.along(path, removed))
    return search.plan(search.fit(widths))


def smallest_plan(
    analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
) -> Plan:
    """The plan nearest to caps that cannot be met: every layer as thin as its floor allows."""
    search = _Search.of(analysis, scores, constraints, options)
    path = search.steepest_path()
    return search.plan(search.along(path, len(path)))


def _shortest(path: np.ndarray, search: _Search) -> int:
    """Length of the shortest prefix of `path` that meets all caps; the whole path is known to."""
    low, high = 0, len(path)
    while low < high:
        middle = (low + high) // 2
        if search.fits(search.along(path, middle)):
            high = middle
        else:
            low = middle + 1
    return high


@dataclass(frozen=True, eq=False)
class _Search:
    """One planning problem. order[g]: components of group g, best first. scores[g]: normalised, in that order."""

    analysis: ChannelAnalysis
    constraints: tuple[Constraint, ...]
    floors: Floors
    order: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]

    @staticmethod
    def of(
        analysis: ChannelAnalysis, scores: np.ndarray, constraints: Sequence[Constraint], options: PlanOptions
    ) -> _Search:
        order, normalised = [], []
        for group in analysis.groups:
            values = scores[group.components]
            ranking = np.argsort(-values, kind="stable")
            mean = values.mean()
            order.append(group.components[ranking])
            normalised.append(values[ranking] / mean if mean > 0 else np.ones(len(values)))
        return _Search(analysis, tuple(constraints), Floors.of(analysis, options), tuple(order), tuple(normalised))

    def plan(self, widths: np.ndarray) -> Plan:
        return compose_plan(self.analysis, self.order, widths, self.constraints)

    def fits(self, widths: np.ndarray) -> bool:
        return fits(self.analysis.costs(widths), self.constraints)

    def use(self, widths: np.ndarray) -> float:
        """Share of the binding cap; the largest over the caps."""
        costs = self.analysis.costs(widths)
        return max(use(costs, constraint) for constraint in self.constraints)

    def along(self, path: np.ndarray, count: int) -> np.ndarray:
        """Widths after the first `count` blocks of `path` have left."""
        left = np.bincount(path[:count], minlength=len(self.order)) * self.floors.block
        return self.analysis.full_widths - left

    def block_score(self, group: int, width: int) -> float:
        """Mean score of the block that leaves next when the group keeps `width` components."""
        return float(self.scores[group][width - self.floors.block[group] : width].mean())

    def path(self) -> np.ndarray:
        """Groups in the order in which their blocks leave: lowest score first, down to the floors."""
        candidates = []
        for group, values in enumerate(self.scores):
            block = int(self.floors.block[group])
            ends = range(len(values), block - 1, -block)
            candidates += [(float(values[end - block : end].mean()), group) for end in ends]
        # Scores fall along a group's own order, so sorting keeps each group's blocks in sequence.
        candidates.sort(key=lambda candidate: candidate[0])
        slack = self.floors.slack(self.analysis.full_widths)
        path = []
        for _, group in candidates:
            step = self.floors.block[group] * self.floors.channels[:, group]
            if ((slack >= step) | (step == 0)).all():
                slack = slack - step
                path.append(group)
        return np.array(path, dtype=np.int64)

    def steepest_path(self) -> np.ndarray:
        """Groups in the order that saves most of the caps that are hardest to reach, down to the floors.

        Where several groups share a layer's floor, which of them stays decides how small the network can become.
        """
        widths = self.analysis.full_widths.copy()
        path: list[int] = []
        while True:
            allowed = [group for group in range(len(widths)) if self.floors.removable(widths, group)]
            if not allowed:
                return np.array(path, dtype=np.int64)
            now = self.analysis.costs(widths)
            group = max(allowed, key=lambda candidate: self._saving(widths, now, candidate))
            # Several blocks of one group in a row: the choice between groups matters only where floors are shared.
            run = max(1, int(widths[group] // self.floors.block[group]) // 8)
            for _ in range(run):
                if self.floors.removable(widths, group):
                    widths[group] -= self.floors.block[group]
                    path.append(group)

    def _saving(self, widths: np.ndarray, now: Costs, group: int) -> float:
        thinner = widths.copy()
        thinner[group] -= self.floors.block[group]
        after = self.analysis.costs(thinner)
        channels = self.floors.block[group] * max(1, int(self.floors.channels[:, group].max(initial=0)))
        missed = [c for c in self.constraints if not c.met_by(now)] or list(self.constraints)
        return sum((c.value(now) - c.value(after)) / max(1, c.limit) for c in missed) / channels

    def refill(self, widths: np.ndarray, locked: int = -1) -> np.ndarray:
        """Return blocks, best first, as long as one fits. A group whose block does not fit never fits again."""
        widths = widths.copy()
        full, block = self.analysis.full_widths, self.floors.block
        open_groups = {group for group in range(len(widths)) if widths[group] < full[group] and group != locked}
        while open_groups:
            group = max(open_groups, key=lambda g: (self.block_score(g, int(widths[g] + block[g])), -g))
            widths[group] += block[group]
            if not self.fits(widths):
                widths[group] -= block[group]
                open_groups.remove(group)
            elif widths[group] >= full[group]:
                open_groups.remove(group)
        return widths

    def fit(self, widths: np.ndarray) -> np.ndarray:
        """Trade blocks of one group for blocks of others until the binding cap is used up, losing as little score as possible."""
        best = widths
        best_use = self.use(best)
        while best_use < _LANDED:
            landed = [(min(self.use(w), _LANDED), self._kept_score(w), w) for w in self._trades(best)]
            if not landed:
                return best
            new_use, _, candidate = max(landed, key=lambda entry: entry[:2])
            if new_use <= best_use:
                return best
            best, best_use = candidate, self.use(candidate)
        return best

    def _trades(self, widths: np.ndarray) -> list[np.ndarray]:
        trades = []
        for group in range(len(widths)):
            thinner = widths.copy()
            for _ in range(_DEEPEST_TRADE):
                if not self.floors.removable(thinner, group):
                    break
                thinner = thinner.copy()
                thinner[group] -= self.floors.block[group]
                trades.append(self.refill(thinner, locked=group))
        return trades

    def _kept_score(self, widths: np.ndarray) -> float:
        return sum(float(values[:width].sum()) for values, width in zip(self.scores, widths, strict=True))


def _infeasible(search: _Search) -> EngineError:
    """Say for each cap that is out of reach what the smallest reachable value is."""
    path = search.steepest_path()
    smallest = search.analysis.costs(search.along(path, len(path)))
    missed = [constraint for constraint in search.constraints if not constraint.met_by(smallest)]
    sentences = [
        f"{c.metric}{f' ({c.kind})' if c.kind else ''} must be at most {c.limit:,}, and {c.value(smallest):,} is the smallest that "
        "this network can reach"
        for c in missed
    ]
    return EngineError(
        "target_infeasible",
        f"{'; '.join(sentences)}. Raise the cap to at least that, or allow thinner layers with the method's min_channels.",
        param=f"/budget/{missed[0].metric}",
        details={"smallest": smallest.as_dict(), "constraints": [c.as_dict(smallest) for c in search.constraints]},
    )
