"""Sorted numbers with running sums: what any cell of a scalar quantiser holds is then two look-ups away."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class SortedValues:
    """values: float64 [n], ascending, n ≥ 1. first, second: float64 [n + 1], sums of values and squares before each."""

    values: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @staticmethod
    def of(values: np.ndarray) -> SortedValues:
        """From numbers of any shape; they must be finite. Raises ValueError."""
        ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
        if not len(ordered) or not np.isfinite(ordered[[0, -1]]).all():
            raise ValueError("values to quantise must be there and finite")
        zero = np.zeros(1)
        return SortedValues(
            ordered,
            np.concatenate((zero, np.cumsum(ordered))),
            np.concatenate((zero, np.cumsum(ordered * ordered))),
        )

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def distinct(self) -> np.ndarray:
        """The different values, ascending."""
        return self.values[np.concatenate(([True], np.diff(self.values) > 0))]

    @cached_property
    def variance(self) -> float:
        return float(np.var(self.values))

    def cells(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(count, sum, sum of squares) of each cell: a value equal to a threshold belongs to the cell above it."""
        inner = np.searchsorted(self.values, thresholds, side="left")
        edges = np.concatenate(([0], inner, [len(self.values)]))
        return np.diff(edges), np.diff(self.first[edges]), np.diff(self.second[edges])
