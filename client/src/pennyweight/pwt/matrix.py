"""The body of a coded tensor: an n × m matrix, one column per slice of the tensor's first axis, and random access to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Matrix:
    """What the header says of a coded tensor."""

    shape: tuple[int, ...]
    levels: int
    zero: int | None

    @property
    def columns(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def rows(self) -> int:
        return math.prod(self.shape[1:] if len(self.shape) > 1 else self.shape)

    @property
    def channels(self) -> int:
        """Input channels: the second axis, or one for vectors and scalars."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def entries(self) -> int:
        return math.prod(self.shape)


class Body(Protocol):
    """Checked when it is made, as far as it can be without decoding."""

    def values(self, start: int, stop: int) -> np.ndarray:
        """float32 values of the columns [start, stop), flat, column after column."""
        ...
