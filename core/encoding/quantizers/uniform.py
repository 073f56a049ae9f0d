"""UQ, uniform quantisation: multiples of one step Δ, which keeps zero a level: Q(w) = Δ·⌊w/Δ + ½⌋.

Δ is the smallest that bisection finds to leave no more than the wanted number of distinct values.
"""

from __future__ import annotations

import numpy as np

from core.encoding.quantizers.levels import Levels
from core.encoding.quantizers.sorted_values import SortedValues

_BISECTIONS = 40
_CURVE_POINTS = 48


class Uniform:
    """Multiples of a step, for one list of values."""

    def __init__(self, values: SortedValues, most_levels: int) -> None:
        self._values = values
        self._most = most_levels
        self._largest = float(np.abs(values.values[[0, -1]]).max())

    def at_levels(self, levels: int) -> Levels:
        return self.at_step(self._step(min(levels, self._most)))

    def at_step(self, step: float) -> Levels:
        """With a step that the caller chose; 0 leaves a list of zeros as it is."""
        if step == 0:
            return Levels.by_thresholds(self._values, np.zeros(1), np.empty(0))
        used = self._multiples(step)
        return Levels.by_thresholds(self._values, used * step, (used[:-1] + 0.5) * step)

    def curve(self) -> list[Levels]:
        """Steps from one that leaves two or three values to the finest that the number of levels allows."""
        if not self._largest:
            return [self.at_step(0)]
        finest = self._step(self._most)
        steps = np.geomspace(max(finest, 1.2 * self._largest), finest, _CURVE_POINTS)
        # A coarser step may use one value more, where its multiples happen to part what a finer one joins.
        return [found for found in map(self.at_step, steps) if len(found) <= self._most]

    def _step(self, levels: int) -> float:
        """The smallest Δ found: at twice the largest magnitude and a little, everything rounds to zero."""
        low, high = 0.0, 2.000001 * self._largest
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if middle == 0 or len(self._multiples(middle)) > levels:
                low = middle
            else:
                high = middle
        return high

    def _multiples(self, step: float) -> np.ndarray:
        """The multiples of the step that are used, ascending."""
        found = np.floor(self._values.values / step + 0.5)
        return found[np.concatenate(([True], np.diff(found) > 0))]
