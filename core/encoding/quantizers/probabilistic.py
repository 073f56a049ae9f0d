"""PWS, probabilistic weight sharing: levels at quantiles, and each value rounded up or down by chance so that E[Q(w)] = w.

The k levels are the quantiles 0, 1/(k − 1), …, 1; equal ones are one level. A value in [χ, χ') becomes χ' with
probability (w − χ)/(χ' − χ); the largest value belongs to the last interval.
"""

from __future__ import annotations

import numpy as np

from core.encoding.quantizers.levels import CURVE_LEVELS, Levels
from core.encoding.quantizers.sorted_values import SortedValues


class Probabilistic:
    """Unbiased random rounding between quantiles of one list of values."""

    def __init__(self, values: SortedValues, most_levels: int) -> None:
        self._values = values
        self._most = most_levels

    def at_levels(self, levels: int) -> Levels:
        """With one level there is no room for chance: it is the mean."""
        values = self._values
        count = min(levels, self._most)
        if count < 2 or values.values[0] == values.values[-1]:
            return Levels.by_thresholds(values, np.array([values.first[-1] / len(values)]), np.empty(0))
        codebook = np.unique(np.quantile(values.values, np.linspace(0, 1, count)))
        # Quantiles are interpolated: the ends must be the extremes to the last digit.
        codebook[0], codebook[-1] = values.values[0], values.values[-1]
        return self._expected(codebook)

    def curve(self) -> list[Levels]:
        return [self.at_levels(count) for count in sorted({min(count, self._most) for count in CURVE_LEVELS})]

    def _expected(self, codebook: np.ndarray) -> Levels:
        """In an interval [χ, χ'] the expected squared error of w is (χ' − w)(w − χ)."""
        low, high = codebook[:-1], codebook[1:]
        members, first, second = self._values.cells(codebook[1:-1])
        squared = float(np.sum((low + high) * first - low * high * members - second))
        up = (first - low * members) / (high - low)
        counts = np.zeros(len(codebook))
        counts[:-1] += members - up
        counts[1:] += up
        return Levels(codebook, None, counts, max(0.0, squared))
