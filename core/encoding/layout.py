"""How a tensor is read as the matrix that the papers code: n rows, m columns, walked column by column.

A layer's weight is [outputs, inputs, ...]; the products of the papers are y = xᵀW with W of n = inputs·(kernel) rows and
m = outputs columns. Column j is therefore the j-th slice of the first axis, and walking W column by column is walking the
tensor in memory order. A vector or a scalar is one column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.encoding.quantized import QuantizedTensor

WORD_BITS = 32


@dataclass(frozen=True)
class Layout:
    """What a decoder must know beside the coded bytes: the tensor's shape, its count of levels, its pruned index."""

    shape: tuple[int, ...]
    levels: int
    zero: int | None = None

    @property
    def columns(self) -> int:
        return columns_of(self.shape)

    @property
    def rows(self) -> int:
        return rows_of(self.shape)

    @property
    def entries(self) -> int:
        return math.prod(self.shape)


def columns_of(shape: Sequence[int]) -> int:
    """m: how many slices the first axis has; 1 for vectors and scalars."""
    return shape[0] if len(shape) > 1 else 1


def rows_of(shape: Sequence[int]) -> int:
    """n: the entries of one column."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def layout_of(tensor: QuantizedTensor) -> Layout:
    return Layout(tuple(tensor.indices.shape), len(tensor.codebook), tensor.zero)


def flat_indices(tensor: QuantizedTensor) -> np.ndarray:
    """The indices in the order in which columns are walked, as int64 [entries]."""
    return np.ascontiguousarray(tensor.indices).reshape(-1).astype(np.int64, copy=False)


def index_type(levels: int) -> np.dtype:
    """The narrowest unsigned integer that holds an index: what decoders give back."""
    return machine_type(max(0, levels - 1))


def machine_type(largest: int) -> np.dtype:
    """The narrowest of uint8, uint16, uint32, uint64 that holds `largest`, little-endian as files have it."""
    for name in ("u1", "<u2", "<u4"):
        if largest < 1 << (8 * int(name[-1])):
            return np.dtype(name)
    return np.dtype("<u8")
