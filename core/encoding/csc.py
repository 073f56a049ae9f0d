"""CSC, compressed sparse columns: the survivors as float32 with their rows, and where each column begins.

Body: column beginnings (m+1 words), survivors (q float32), their rows (q of the machine width that holds n-1).
The pruned entries are those of the reserved zero; in a plain float32 array, those whose bits are all zero.
"""

from __future__ import annotations

import numpy as np

from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import (
    WORD_BITS,
    Layout,
    columns_of,
    flat_indices,
    index_type,
    layout_of,
    machine_type,
    rows_of,
)
from core.encoding.quantized import QuantizedTensor


def size_bits(tensor: QuantizedTensor) -> int:
    """q·(B + b_r) + (m+1)·B bits: every survivor is charged its value and its row; without the codebook."""
    layout = layout_of(tensor)
    survivors = layout.entries - _pruned(tensor)
    row_bits = 8 * machine_type(max(0, layout.rows - 1)).itemsize
    return survivors * (WORD_BITS + row_bits) + (layout.columns + 1) * WORD_BITS


def encode(tensor: QuantizedTensor) -> bytes:
    flat = flat_indices(tensor)
    alive = np.ones(len(flat), bool) if tensor.zero is None else flat != tensor.zero
    return _encode(alive, tensor.codebook[flat[alive]], layout_of(tensor).rows, layout_of(tensor).columns)


def encode_plain(array: np.ndarray) -> bytes:
    """A float32 array without a codebook."""
    flat = np.ascontiguousarray(array, "<f4").reshape(-1)
    alive = flat.view("<u4") != 0
    return _encode(alive, flat[alive], rows_of(array.shape), columns_of(array.shape))


def size_of_plain(array: np.ndarray) -> int:
    """Bytes of `encode_plain`."""
    survivors = int(np.count_nonzero(np.ascontiguousarray(array, "<f4").view("<u4")))
    return survivors * (4 + machine_type(max(0, rows_of(array.shape) - 1)).itemsize) + 4 * (columns_of(array.shape) + 1)


def _encode(alive: np.ndarray, values: np.ndarray, rows: int, columns: int) -> bytes:
    counts = alive.reshape(columns, rows).sum(axis=1)
    begins = np.concatenate([[0], np.cumsum(counts)])
    row_of = np.flatnonzero(alive) - np.repeat(np.arange(columns) * rows, counts)
    row_type = machine_type(max(0, rows - 1))
    return begins.astype("<u4").tobytes() + values.astype("<f4").tobytes() + row_of.astype(row_type).tobytes()


def _pruned(tensor: QuantizedTensor) -> int:
    return 0 if tensor.zero is None else int(np.count_nonzero(tensor.indices == tensor.zero))


class Decoder:
    """Random access to the columns of one body."""

    def __init__(self, body: memoryview, layout: Layout, codebook: np.ndarray | None) -> None:
        self._layout = layout
        self._codebook = codebook
        row_type = machine_type(max(0, layout.rows - 1))
        head = 4 * (layout.columns + 1)
        if len(body) < head:
            raise PwtError(PwtFault.bad_extent, "csc", f"{len(body)} bytes cannot hold {layout.columns + 1} beginnings")
        self._begins = np.frombuffer(body[:head], "<u4").astype(np.int64)
        survivors = int(self._begins[-1])
        if len(body) != head + survivors * (4 + row_type.itemsize):
            raise PwtError(PwtFault.bad_extent, "csc", f"{len(body)} bytes do not hold {survivors} survivors exactly")
        counts = np.diff(self._begins)
        if self._begins[0] != 0 or (counts < 0).any() or (counts > layout.rows).any():
            raise PwtError(PwtFault.bad_index, "csc", "the column beginnings are not an ascending list of what fits")
        self._values = np.frombuffer(body[head : head + 4 * survivors], "<f4")
        self._rows = np.frombuffer(body[head + 4 * survivors :], row_type)

    def values(self, start: int, stop: int) -> np.ndarray:
        """float32 values of the columns [start, stop): [columns, rows]."""
        place, found = self._survivors(start, stop)
        dense = np.zeros((stop - start) * self._layout.rows, np.float32)
        dense[place] = found
        return dense.reshape(stop - start, self._layout.rows)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Indices of the columns [start, stop): [columns, rows]."""
        place, found = self._survivors(start, stop)
        levels = self._codebook.view("<u4")
        order = np.argsort(levels, kind="stable")
        if self._layout.zero is not None:
            order = order[order != self._layout.zero]
        at = np.searchsorted(levels[order], found.view("<u4"))
        if len(found) and (len(order) == 0 or (levels[order].take(at, mode="clip") != found.view("<u4")).any()):
            raise PwtError(PwtFault.bad_index, "csc", "a survivor's value is not in the codebook")
        kind = index_type(self._layout.levels)
        dense = np.full((stop - start) * self._layout.rows, self._layout.zero or 0, kind)
        if self._layout.zero is None and len(found) < len(dense):
            raise PwtError(
                PwtFault.bad_index, "csc", "an entry is missing, and no level is reserved for pruned entries"
            )
        dense[place] = order[at]
        return dense.reshape(stop - start, self._layout.rows)

    def _survivors(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Their places in the flat range of columns, strictly ascending, and their values."""
        first, last = int(self._begins[start]), int(self._begins[stop])
        counts = np.diff(self._begins[start : stop + 1])
        rows = self._rows[first:last].astype(np.int64)
        place = rows + np.repeat(np.arange(stop - start) * self._layout.rows, counts)
        if (rows >= self._layout.rows).any() or (np.diff(place) <= 0).any():
            raise PwtError(PwtFault.bad_index, "csc", "the rows of a column are not ascending rows that exist")
        return place, self._values[first:last]
