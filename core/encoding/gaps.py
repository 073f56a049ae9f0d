"""Distances between survivors as tokens: exact up to 15, then eight tokens per octave with the rest as extra bits.

Where entries are pruned independently, distances are geometric and carry exactly the entropy of the pruning pattern; inside
an eighth of an octave they are so nearly uniform that plain extra bits lose less than a thousandth.
"""

from __future__ import annotations

import numpy as np

EXACT = 16
TOKENS = EXACT + 8 * 28  # distances below 2**32


def tokens_of(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token, count of extra bits, and extra bits of each distance (int64, below 2**32)."""
    octave = np.frexp(np.maximum(gaps, EXACT).astype(np.float64))[1].astype(np.int64) - 1
    width = np.where(gaps < EXACT, 0, octave - 3)
    token = np.where(gaps < EXACT, gaps, EXACT + 8 * (octave - 4) + ((gaps >> width) & 7))
    return token, width, gaps & ((1 << width) - 1)


def widths_of(tokens: np.ndarray) -> np.ndarray:
    """Extra bits of each token, int64."""
    return np.where(tokens < EXACT, 0, (tokens - EXACT) // 8 + 1)


def smallest_gaps(tokens: np.ndarray) -> np.ndarray:
    """The distance of each token whose extra bits are all zero, int64."""
    width = widths_of(tokens)
    return np.where(tokens < EXACT, tokens, (8 + (tokens - EXACT) % 8) << width)
