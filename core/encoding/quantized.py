"""A tensor whose values are shared: a codebook and one index per weight, which is what quantisers make and coders take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QuantizedTensor:
    """indices: integers of the tensor's shape, each below len(codebook). codebook: float32 [k], strictly increasing but
    for an optional reserved zero. zero: the index that means "pruned", whose value is exactly 0; None if there is none.
    """

    indices: np.ndarray
    codebook: np.ndarray
    zero: int | None = None

    def values(self) -> np.ndarray:
        """The weights, float32, of the indices' shape."""
        return self.codebook[self.indices]
