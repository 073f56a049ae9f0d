"""Labelled values: what the interpreter of `core.analysis.trace` computes with.

A value has a shape at batch 1 and, per axis, an integer vector of labels, one per position. Positions with the same
label are kept or removed together. An axis without a vector cannot be sliced; an axis of size 1 never has one, so that
broadcasting is simply "size 1: skip".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Labels = np.ndarray


@dataclass(frozen=True, eq=False)
class Value:
    """Shape at batch 1 and label vectors (int64, length shape[axis]) of the axes that can be sliced."""

    shape: tuple[int, ...]
    labels: Mapping[int, Labels] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def axis(self, axis: int) -> int:
        """The non-negative form of `axis`."""
        return axis + self.rank if axis < 0 else axis

    def vector(self, axis: int) -> Labels | None:
        return self.labels.get(self.axis(axis))


def factors(value: Value) -> tuple[int, tuple[Labels, ...]]:
    """The element count as constant × Π kept lengths: (product of unlabelled sizes, label vectors)."""
    constant = math.prod(size for axis, size in enumerate(value.shape) if axis not in value.labels)
    return constant, tuple(value.labels.values())
