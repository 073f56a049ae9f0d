"""Ranking: in which order channels leave.

Scores are divided by the mean of their group, which makes groups comparable; within a group the score alone decides. A
*step* takes a group one rung down its ladder; its score is the mean of the components that leave with it. Ranked per
layer, a component's place in its group stands for its score, so that every group gives the same share. A method whose
scores already say which group gives next has them compared as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.analysis import ChannelAnalysis
from core.planning.lattice import Lattice

Comparison = Literal["global", "per_layer", "as_scored"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """order[g]: components of group g, best first; equal scores by index.

    All steps, lowest score first and in the order in which they can be taken: step i takes group `step_group[i]` from
    rung `step_level[i]` + 1 to rung `step_level[i]`. kept_score[g, level]: sum of normalised scores that g then keeps.
    """

    order: tuple[np.ndarray, ...]
    step_group: np.ndarray
    step_level: np.ndarray
    kept_score: np.ndarray

    @staticmethod
    def of(
        analysis: ChannelAnalysis, lattice: Lattice, scores: np.ndarray, *, compared: Comparison = "global"
    ) -> Ranking:
        """scores: float64 per component, finite and not negative, larger = more important. Raises ValueError."""
        _check(scores, analysis.components)
        order, groups, levels, values = [], [], [], []
        kept_score = np.zeros(lattice.ladders.shape)
        for group in analysis.groups:
            own = scores[group.components]
            best_first = np.argsort(-own, kind="stable")
            order.append(group.components[best_first])
            ranked = _comparable(own[best_first], compared)
            kept_score[group.index] = np.append(0.0, np.cumsum(ranked))[lattice.ladders[group.index]]
            top = int(lattice.top[group.index])
            width = np.diff(lattice.ladders[group.index, : top + 1])
            step = np.diff(kept_score[group.index, : top + 1]) / width
            # Rounding must not let a step overtake the one that it depends on.
            values.append(np.minimum.accumulate(step))
            levels.append(np.arange(top))
            groups.append(np.full(top, group.index))
        group_of, level_of = _joined(groups), _joined(levels)
        sequence = np.lexsort((-level_of, group_of, np.concatenate([np.zeros(0), *values])))
        return Ranking(tuple(order), group_of[sequence], level_of[sequence], kept_score)

    def score_kept(self, levels: np.ndarray) -> float:
        """Sum of normalised scores of all components that stay."""
        return float(self.kept_score[np.arange(len(levels)), levels].sum())


def _comparable(best_first: np.ndarray, compared: Comparison) -> np.ndarray:
    if compared == "as_scored":
        return best_first
    return _places(len(best_first)) if compared == "per_layer" else _normalised(best_first)


def _normalised(scores: np.ndarray) -> np.ndarray:
    mean = scores.mean()
    return scores / mean if mean > 0 else np.ones(len(scores))


def _places(count: int) -> np.ndarray:
    """Descending, with mean 1: the same at the same share of any group."""
    return (2 * np.arange(count, 0, -1) - 1) / count


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _check(scores: np.ndarray, components: int) -> None:
    if scores.shape != (components,):
        raise ValueError(f"scores have shape {scores.shape}, expected ({components},)")
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise ValueError("scores must be finite and not negative")
