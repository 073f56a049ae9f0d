"""How far a delivered form computes from the network."""

from __future__ import annotations

import numpy as np


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """‖got − want‖ / ‖want‖, 0 for two zeros; infinite where shapes differ or a value is not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    difference = np.linalg.norm((got - want).ravel().astype(np.float64))
    size = np.linalg.norm(want.ravel().astype(np.float64))
    return float(difference / size) if size > 0 else float(difference)
