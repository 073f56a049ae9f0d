"""CWS, clustering weight sharing: the codebook with the least squared error, exactly.

In one dimension clusters are intervals of the sorted values, so k-means has a dynamic programme (Wang, Song,
"Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming", 2011):

    D[k, j] = min over i of D[k − 1, i] + cost(i, j)      cost(i, j) = squared error of values i … j − 1 about their mean

The best i grows with j, so one row takes O(n log n) by divide and conquer, all midpoints of one depth at a time. One table
has the optimum of every number of clusters up to its own.

Beyond GRID distinct values, neighbours are first merged on a grid of that many cells of width h. Then the root mean square
error is within 2δ of the optimum, δ ≤ h/2 being the root mean square distance that the merge moves values, and Lloyd's
iteration on the unmerged values only ever lowers it.
"""

from __future__ import annotations

import numpy as np

from core.encoding.quantizers.levels import CURVE_LEVELS, Levels
from core.encoding.quantizers.sorted_values import SortedValues

GRID = 2**12
_LLOYD_STEPS = 30


class Clustering:
    """Optimal clusterings of one list of values, for every number of clusters up to `most_levels`.

    grid: cells to merge more distinct values on; None for none, whatever it takes.
    """

    def __init__(self, values: SortedValues, most_levels: int, grid: int | None = GRID) -> None:
        self._values = values
        self.exact = grid is None or len(values.distinct) <= grid
        self._edges = _distinct_edges(values) if self.exact else _grid_edges(values, grid)
        self._most = min(most_levels, len(self._edges) - 1)
        self._splits = _splits(values, self._edges, self._most)

    def at_levels(self, levels: int) -> Levels:
        count = min(levels, self._most)
        ends = [len(self._edges) - 1]
        for row in range(count, 1, -1):
            ends.append(int(self._splits[row - 2][ends[-1]]))
        inner = self._edges[np.array(ends[:0:-1], dtype=np.int64)]
        thresholds = (self._values.values[inner - 1] + self._values.values[inner]) / 2
        # The midpoint of two neighbouring floats may be the lower one, which must stay below.
        thresholds = np.where(thresholds <= self._values.values[inner - 1], self._values.values[inner], thresholds)
        return _settled(self._values, thresholds, 0 if self.exact else _LLOYD_STEPS)

    def curve(self) -> list[Levels]:
        counts = sorted({min(count, self._most) for count in CURVE_LEVELS})
        return [self.at_levels(count) for count in counts]


def _settled(values: SortedValues, thresholds: np.ndarray, steps: int) -> Levels:
    """Means of the cells, after at most `steps` of Lloyd's iteration."""
    for _ in range(steps):
        counts, first, _ = values.cells(thresholds)
        means = first[counts > 0] / counts[counts > 0]
        moved = (means[:-1] + means[1:]) / 2
        if len(moved) == len(thresholds) and np.array_equal(moved, thresholds):
            break
        thresholds = moved
    counts, first, _ = values.cells(thresholds)
    means = np.where(counts > 0, first / np.maximum(counts, 1), np.nan)
    return Levels.by_thresholds(values, np.nan_to_num(means), thresholds)


def _distinct_edges(values: SortedValues) -> np.ndarray:
    """int64 [m + 1]: where each run of equal values begins, and the end."""
    starts = np.flatnonzero(np.diff(values.values) > 0) + 1
    return np.concatenate(([0], starts, [len(values)]))


def _grid_edges(values: SortedValues, grid: int) -> np.ndarray:
    low, high = values.values[0], values.values[-1]
    inner = np.searchsorted(values.values, np.linspace(low, high, grid + 1)[1:-1])
    return np.unique(np.concatenate(([0], inner, [len(values)])))


def _splits(values: SortedValues, edges: np.ndarray, most: int) -> list[np.ndarray]:
    """For each number of clusters from 2 on: where the last cluster of the first j points begins, int32 by j."""
    points = len(edges) - 1
    weight = edges.astype(np.float64)
    # About the mean, so that small clusters far from zero lose no digits.
    mean = values.first[-1] / len(values)
    first = values.first[edges] - mean * weight
    second = values.second[edges] - 2 * mean * values.first[edges] + mean**2 * weight
    # Points are runs or grid cells, and a cell counts with its own mean: what is inside it is the same for every split.
    best = _cost(np.zeros(1, dtype=np.int64), np.arange(1, points + 1), weight, first, second)
    best = np.concatenate(([0.0], best))
    splits = []
    for clusters in range(2, most + 1):
        best, chosen = _row(best, clusters, points, weight, first, second)
        splits.append(chosen)
    return splits


def _cost(begin: np.ndarray, end: np.ndarray, weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    members, total = weight[end] - weight[begin], first[end] - first[begin]
    return second[end] - second[begin] - total * total / members


def _row(
    before: np.ndarray, clusters: int, points: int, weight: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One row of the table: least errors of the first j points in `clusters` clusters, and the last split of each."""
    best = np.full(points + 1, np.inf)
    chosen = np.zeros(points + 1, dtype=np.int32)
    left, right = np.array([clusters]), np.array([points])
    low, high = np.array([clusters - 1]), np.array([points - 1])
    while len(left):
        middle = (left + right) // 2
        top = np.minimum(high, middle - 1)
        lengths = top - low + 1
        starts = np.cumsum(lengths) - lengths
        begin = np.arange(int(lengths.sum())) - np.repeat(starts - low, lengths)
        errors = before[begin] + _cost(begin, np.repeat(middle, lengths), weight, first, second)
        least = np.minimum.reduceat(errors, starts)
        at_least = np.flatnonzero(errors == np.repeat(least, lengths))
        split = begin[at_least[np.searchsorted(at_least, starts)]]
        best[middle], chosen[middle] = least, split
        goes_left, goes_right = left < middle, middle < right
        left, right, low, high = (
            np.concatenate((left[goes_left], middle[goes_right] + 1)),
            np.concatenate((middle[goes_left] - 1, right[goes_right])),
            np.concatenate((low[goes_left], split[goes_right])),
            np.concatenate((split[goes_left], high[goes_right])),
        )
    return best, chosen
