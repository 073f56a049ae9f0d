"""sHAC, sparse HAC: the columns' survivors as codewords, their rows and counts plain; pruned entries take no bit.

Source: Marinò, Ghidoli, Frasca, Malchiodi (arXiv 2007.07967, where it is sHAM; arXiv 2108.12704). The rows are charged once
per survivor, as the authors' later code does. Body: codeword lengths (k bytes), bits of each column, survivors of each
column (machine width that holds n), rows of the survivors (machine width that holds n-1), stream in 32-bit words.
"""

from __future__ import annotations

import numpy as np

from core.encoding import bits, huffman
from core.encoding.errors import PwtError, PwtFault
from core.encoding.hac import Accounting, ends_type, opened, stream_of_columns
from core.encoding.layout import Layout, flat_indices, index_type, layout_of, machine_type
from core.encoding.quantized import QuantizedTensor


def accounting(tensor: QuantizedTensor) -> Accounting:
    layout = layout_of(tensor)
    counts = np.bincount(flat_indices(tensor), minlength=layout.levels)
    if tensor.zero is not None:
        counts[tensor.zero] = 0
    lengths = huffman.code_lengths(counts).astype(np.int64)
    return Accounting(
        stream=8 * bits.stream_bytes(int((counts * lengths).sum())),
        rows=8 * int(counts.sum()) * _row_type(layout).itemsize,
        counts=8 * layout.columns * machine_type(layout.rows).itemsize,
        code=8 * layout.levels,
        ends=8 * layout.columns * ends_type(layout.rows, lengths).itemsize,
    )


def size_bits(tensor: QuantizedTensor) -> int:
    return accounting(tensor).total


def encode(tensor: QuantizedTensor) -> bytes:
    layout, flat = layout_of(tensor), flat_indices(tensor)
    alive = np.ones(len(flat), bool) if tensor.zero is None else flat != tensor.zero
    survivors = flat[alive]
    code = huffman.Code(huffman.code_lengths(np.bincount(survivors, minlength=layout.levels)))
    counts = alive.reshape(layout.columns, layout.rows).sum(axis=1)
    begins = np.concatenate([[0], np.cumsum(code.lengths[survivors], dtype=np.int64)])[
        np.concatenate([[0], np.cumsum(counts)])
    ]
    rows = np.flatnonzero(alive) - np.repeat(np.arange(layout.columns) * layout.rows, counts)
    return b"".join(
        [
            code.lengths.tobytes(),
            np.diff(begins).astype(ends_type(layout.rows, code.lengths)).tobytes(),
            counts.astype(machine_type(layout.rows)).tobytes(),
            rows.astype(_row_type(layout)).tobytes(),
            huffman.encode(survivors, code),
        ]
    )


class Decoder:
    """Random access to the columns of one body, dense or as survivors."""

    def __init__(self, body: memoryview, layout: Layout) -> None:
        self._layout = layout
        if len(body) < layout.levels:
            raise PwtError(PwtFault.bad_extent, "shac", f"{len(body)} bytes cannot hold {layout.levels} lengths")
        code = huffman.Code(np.frombuffer(body[: layout.levels], np.uint8))
        at = layout.levels + layout.columns * ends_type(layout.rows, code.lengths).itemsize
        count_type, row_type = machine_type(layout.rows), _row_type(layout)
        count_bytes = layout.columns * count_type.itemsize
        if len(body) < at + count_bytes:
            raise PwtError(PwtFault.bad_extent, "shac", f"{len(body)} bytes cannot hold {layout.columns} counts")
        self._counts = np.frombuffer(body[at : at + count_bytes], count_type).astype(np.int64)
        if len(self._counts) and int(self._counts.max()) > layout.rows:
            raise PwtError(PwtFault.bad_index, "shac", "a column has more survivors than rows")
        self._begins = np.concatenate([[0], np.cumsum(self._counts)])
        row_bytes = int(self._begins[-1]) * row_type.itemsize
        if layout.zero is None and row_bytes != layout.entries * row_type.itemsize:
            raise PwtError(
                PwtFault.bad_index, "shac", "an entry is missing, and no level is reserved for pruned entries"
            )
        self.code, self.ends, self.stream = opened(body, layout, count_bytes + row_bytes, "shac")
        self._rows = np.frombuffer(body[at + count_bytes : at + count_bytes + row_bytes], row_type)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Indices of the columns [start, stop): [columns, rows]."""
        counts, rows, indices = self.survivors(start, stop)
        size = (stop - start) * self._layout.rows
        dense = np.full(size, self._layout.zero or 0, index_type(self._layout.levels))
        dense[rows + np.repeat(np.arange(stop - start) * self._layout.rows, counts)] = indices
        return dense.reshape(stop - start, self._layout.rows)

    def check(self, columns_at_once: int) -> None:
        """Raises PwtError where a row is none or a column does not end where it must, for those who read `placed` and the
        stream without looking. columns_at_once: to hold while looking."""
        for start in range(0, self._layout.columns, columns_at_once):
            self.survivors(start, min(start + columns_at_once, self._layout.columns))

    def placed(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Survivors of each of the columns [start, stop), and their rows as they are stored."""
        return self._counts[start:stop], self._rows[self._begins[start] : self._begins[stop]]

    def survivors(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the columns [start, stop): survivors of each, and their rows and indices, column after column."""
        counts = self._counts[start:stop]
        rows = self._rows[self._begins[start] : self._begins[stop]].astype(np.int64)
        place = rows + np.repeat(np.arange(stop - start) * self._layout.rows, counts)
        if (rows >= self._layout.rows).any() or (np.diff(place) <= 0).any():
            raise PwtError(PwtFault.bad_index, "shac", "the rows of a column are not ascending rows that exist")
        words, ends = stream_of_columns(self.stream, self.ends, start, stop)
        return counts, rows, huffman.decode(words, ends[:-1], ends[1:], counts, self.code)


def _row_type(layout: Layout) -> np.dtype:
    return machine_type(max(0, layout.rows - 1))
