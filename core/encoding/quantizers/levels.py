"""Levels: what a quantiser decided, and how values become indices by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.encoding.quantizers.sorted_values import SortedValues

MOST_LEVELS = 256
# What a rate–distortion curve is made of: dense where a level more or less matters.
CURVE_LEVELS = (
    *range(2, 17),
    *range(18, 33, 2),
    *range(36, 65, 4),
    *range(72, 129, 8),
    *range(144, MOST_LEVELS + 1, 16),
)


@dataclass(frozen=True, eq=False)
class Levels:
    """Shared values and who gets which.

    codebook: float64 [k], strictly increasing. thresholds: float64 [k − 1] between the cells, or None where values fall
    to either neighbour by chance. counts: float64 [k], members (expected ones, by chance). squared_error: the sum over
    all values (the expected one, by chance).
    """

    codebook: np.ndarray
    thresholds: np.ndarray | None
    counts: np.ndarray
    squared_error: float

    @staticmethod
    def by_thresholds(values: SortedValues, codebook: np.ndarray, thresholds: np.ndarray) -> Levels:
        """Cells of `values` between `thresholds`, each with its shared value; empty cells are left out."""
        counts, first, second = values.cells(thresholds)
        squared = float(np.sum(second - 2 * codebook * first + codebook**2 * counts))
        used = counts > 0
        # Of the thresholds around an empty cell any will do, as no value lies between them.
        kept = thresholds[np.flatnonzero(used)[1:] - 1]
        return Levels(codebook[used], kept, counts[used].astype(np.float64), max(0.0, squared))

    def __len__(self) -> int:
        return len(self.codebook)

    @property
    def bits(self) -> float:
        """Entropy of the indices per value, in bits."""
        shares = self.counts[self.counts > 0] / self.counts.sum()
        return float(-(shares * np.log2(shares)).sum())

    def indices(self, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int32 of the shape of `values`. generator: decides where chance does."""
        values = np.asarray(values, dtype=np.float64)
        if self.thresholds is not None:
            return np.searchsorted(self.thresholds, values, side="right").astype(np.int32)
        if len(self.codebook) == 1:
            return np.zeros(values.shape, dtype=np.int32)
        below = np.clip(np.searchsorted(self.codebook, values, side="right") - 1, 0, len(self.codebook) - 2)
        low, high = self.codebook[below], self.codebook[below + 1]
        up = generator.random(values.shape) < (values - low) / (high - low)
        return (below + up).astype(np.int32)
