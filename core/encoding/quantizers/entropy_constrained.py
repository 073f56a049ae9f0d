"""ECSQ, entropy-constrained scalar quantisation: least squared error plus a price per bit of the coded index.

Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", 1989, in one dimension:

    J = mean of (w − c_q)²/σ² + λ·(−log2 p_q)      assign to the cheapest, then c = mean of the members, p = their share

λ is in units of the values' variance σ² per bit, so one λ means the same for every layer. The cost of a cell is a line in
w once w² is left out, so cells are intervals between the corners of an envelope of lines, and cells that are not on it are
dead. λ only rises along the path, each step from where the last one came to rest, so cells only ever die.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from core.encoding.quantizers.levels import Levels
from core.encoding.quantizers.sorted_values import SortedValues

# Relative: squared errors of weights are 1e-4 and below, where an absolute tolerance would stop at once.
_TOLERANCE = 1e-5
_STEPS = 200
_START_CELLS = 3
_PRICES = np.geomspace(1e-6, 4.0, 64)
_BISECTIONS = 12


class EntropyConstrained:
    """The path of one list of values from cheap bits to dear ones. Starts from `_START_CELLS` × most_levels equal cells."""

    def __init__(self, values: SortedValues, most_levels: int) -> None:
        self._values = values
        self._most = most_levels
        self._start = _equal_cells(values, _START_CELLS * most_levels)
        self._scale = values.variance or 1.0

    def at_price(self, price: float, start: Levels | None = None) -> Levels:
        """The quantiser of λ = `price`, from `start` or from equal cells."""
        return settle(self._values, start or self._start, price * self._scale)

    def at_levels(self, levels: int) -> Levels:
        """The lowest λ found that leaves at most `levels` cells."""
        return self._cheapest(lambda found: len(found) <= min(levels, self._most))

    def at_bits(self, bits: float) -> Levels:
        """The lowest λ found whose indices have an entropy of at most `bits` per value, within the levels allowed."""
        return self._cheapest(lambda found: found.bits <= bits and len(found) <= self._most)

    def curve(self) -> list[Levels]:
        """The path from its end, where few cells are left, to where there are as many as allowed."""
        found = []
        current = self._start
        for price in _PRICES:
            current = self.at_price(price, current)
            if len(current) <= self._most:
                found.append(current)
        return found[::-1]

    def _cheapest(self, good: Callable[[Levels], bool]) -> Levels:
        before, low = self._start, 0.0
        for price in _PRICES:
            current = self.at_price(price, before)
            if good(current):
                break
            before, low = current, price
        else:
            # Cells of equal rights, such as one value in each of two, hold each other at any price.
            while not good(current):
                current = _with_one_less(self._values, current)
            return current
        high = price
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            tried = self.at_price(middle, before)
            if good(tried):
                current, high = tried, middle
            else:
                low = middle
        return current


def settle(values: SortedValues, start: Levels, price: float) -> Levels:
    """Alternate assignment and update from `start` until the cost no longer falls. price: per bit, in units of values²."""
    current, cost = start, np.inf
    for _ in range(_STEPS):
        rates = -price * np.log2(current.counts / len(values))
        thresholds = _envelope(current.codebook, rates)
        counts, first, _ = values.cells(thresholds)
        used = counts > 0
        means = first[used] / counts[used]
        kept = thresholds[np.flatnonzero(used)[1:] - 1]
        current = Levels.by_thresholds(values, means, kept)
        lower = current.squared_error / len(values) + price * current.bits
        if cost - lower <= _TOLERANCE * lower:
            break
        cost = lower
    return current


def _envelope(codebook: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The thresholds between the cells that are cheapest for some value."""
    while True:
        thresholds = (np.diff(codebook**2) + np.diff(rates)) / (2 * np.diff(codebook))
        dominated = np.concatenate(([False], thresholds[:-1] >= thresholds[1:], [False]))[: len(codebook)]
        # Of two dominated neighbours one may be fine once the other is gone.
        dominated[1:] &= ~dominated[:-1]
        if not dominated.any():
            return thresholds
        codebook, rates = codebook[~dominated], rates[~dominated]


def _with_one_less(values: SortedValues, levels: Levels) -> Levels:
    """The two neighbours that cost least to join, joined."""
    counts, first, _ = values.cells(levels.thresholds)
    lost = np.diff(levels.codebook) ** 2 * counts[:-1] * counts[1:] / (counts[:-1] + counts[1:])
    thresholds = np.delete(levels.thresholds, np.argmin(lost))
    counts, first, _ = values.cells(thresholds)
    return Levels.by_thresholds(values, first / counts, thresholds)


def _equal_cells(values: SortedValues, cells: int) -> Levels:
    """Cells of equal width, which is what is best at high rates, each with its mean."""
    thresholds = np.linspace(values.values[0], values.values[-1], cells + 1)[1:-1]
    thresholds = np.unique(thresholds)
    counts, first, _ = values.cells(thresholds)
    used = counts > 0
    return Levels.by_thresholds(values, first[used] / counts[used], thresholds[np.flatnonzero(used)[1:] - 1])
