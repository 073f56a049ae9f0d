"""How far a delivered form computes from the network."""

from __future__ import annotations

import numpy as np

# What a sigmoid leaves of large negative numbers is known to float32's resolution at 1 and not to its own.
_LEAST_SIZE_PER_ELEMENT = 1e-3


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """‖got − want‖ / ‖want‖ over the finite values; infinite where shapes differ, or only one of the two is finite.

    ‖want‖ counts as at least 1e-3 per element.
    """
    finite = np.isfinite(want)
    if got.shape != want.shape or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return float("inf")
    got, want = got[finite].astype(np.float64), want[finite].astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    least = _LEAST_SIZE_PER_ELEMENT * np.sqrt(want.size)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), least)) if want.size else 0.0
