"""How far a delivered form computes from the network."""

from __future__ import annotations

import numpy as np


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """‖got − want‖ / ‖want‖, 0 for two zeros; infinite where shapes differ, or only one of the two has a finite value."""
    finite = np.isfinite(want)
    if got.shape != want.shape or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return float("inf")
    got, want = got[finite].astype(np.float64), want[finite].astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    difference, size = np.linalg.norm(got - want), np.linalg.norm(want)
    return float(difference / size) if size > 0 else float(difference)
