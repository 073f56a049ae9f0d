"""How far a delivered form computes from the network."""

from __future__ import annotations

import numpy as np


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """‖got − want‖ / ‖want‖; infinite where shapes differ or a value is not finite.

    ‖want‖ counts as at least 1e-3 per element: what a sigmoid leaves of large negative numbers is known to float32's
    resolution at 1 and not to its own.
    """
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    difference = np.linalg.norm((got - want).ravel().astype(np.float64))
    size = np.linalg.norm(want.ravel().astype(np.float64))
    floor = 1e-3 * np.sqrt(want.size)
    return float(difference / max(size, floor)) if want.size else 0.0
