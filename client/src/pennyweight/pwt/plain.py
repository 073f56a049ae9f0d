"""The bodies without entropy coding: the index map and compressed sparse columns."""

from __future__ import annotations

import numpy as np

from .bits import Bits, stream_bytes, unsigned
from .faults import PwtFault, require
from .matrix import Matrix


class IndexMap:
    """Every entry as an index of ⌈log2 k⌉ bits."""

    def __init__(self, body: memoryview, matrix: Matrix, codebook: np.ndarray) -> None:
        self._matrix, self._codebook = matrix, codebook
        self._width = (matrix.levels - 1).bit_length()
        expected = stream_bytes(matrix.entries * self._width)
        require(len(body) == expected, PwtFault.bad_extent, "im", f"{len(body)} bytes of indices, not {expected}")
        self._body = body

    def values(self, start: int, stop: int) -> np.ndarray:
        count = (stop - start) * self._matrix.rows
        first = start * self._matrix.rows * self._width
        stream = Bits(self._body[first // 8 : (first + count * self._width + 7) // 8])
        indices = stream.row(first % 8, count, self._width)
        require((indices < self._matrix.levels).all(), PwtFault.bad_index, "im", "an index is not below the levels")
        return self._codebook[indices]


class SparseColumns:
    """Column beginnings, survivors, and their rows. Also stores float32 arrays that have no codebook."""

    def __init__(self, body: memoryview, matrix: Matrix, codebook: np.ndarray) -> None:
        self._matrix, self._codebook = matrix, codebook
        head = 4 * (matrix.columns + 1)
        require(len(body) >= head, PwtFault.bad_extent, "csc", "it ends within the column beginnings")
        self._begins = np.frombuffer(body[:head], "<u4").astype(np.int64)
        row_type = unsigned(max(0, matrix.rows - 1))
        values_end = head + 4 * int(self._begins[-1])
        whole = values_end + int(self._begins[-1]) * row_type.itemsize
        require(len(body) == whole, PwtFault.bad_extent, "csc", f"{len(body)} bytes, not {whole}")
        counts = np.diff(self._begins)
        ascending = self._begins[0] == 0 and (counts >= 0).all() and (counts <= matrix.rows).all()
        require(ascending, PwtFault.bad_index, "csc", "the column beginnings are not an ascending list of what fits")
        self._values = np.frombuffer(body[head:values_end], "<f4")
        self._rows = np.frombuffer(body[values_end:], row_type)

    def values(self, start: int, stop: int) -> np.ndarray:
        rows, size = self._matrix.rows, (stop - start) * self._matrix.rows
        first, last = int(self._begins[start]), int(self._begins[stop])
        found = self._values[first:last]
        place = scattered(self._rows[first:last], np.diff(self._begins[start : stop + 1]), rows, "csc")
        if len(self._codebook):
            whole = self._matrix.zero is not None or len(found) == size
            require(whole, PwtFault.bad_index, "csc", "an entry is missing, and no level is reserved for pruned ones")
            survivors = np.delete(self._codebook, [] if self._matrix.zero is None else [self._matrix.zero])
            known = np.isin(found.view("<u4"), survivors.view(np.uint32))
            require(known.all(), PwtFault.bad_index, "csc", "a survivor's value is not in the codebook")
        dense = np.full(size, 0 if self._matrix.zero is None else self._codebook[self._matrix.zero], np.float32)
        dense[place] = found
        return dense


def scattered(rows_of: np.ndarray, counts: np.ndarray, rows: int, where: str) -> np.ndarray:
    """Where survivors lie in a flat range of columns; their rows must exist and ascend within each column."""
    place = rows_of.astype(np.int64) + np.repeat(np.arange(len(counts)) * rows, counts)
    ascending = (rows_of < rows).all() and (np.diff(place) > 0).all()
    require(ascending, PwtFault.bad_index, where, "the rows of a column are not ascending rows that exist")
    return place
