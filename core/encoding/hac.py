"""HAC, Huffman address map compression: every entry, pruned ones too, as its codeword, column after column.

Source: Marinò, Ghidoli, Frasca, Malchiodi (arXiv 2007.07967, where it is HAM; arXiv 2108.12704); canonical codes and column
ends as in the authors' later code. Body: codeword lengths (k bytes), bits of each column (m numbers of the machine width
that holds n·L, L the longest codeword), stream in 32-bit words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.encoding import bits, huffman
from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import Layout, flat_indices, index_type, layout_of, machine_type
from core.encoding.quantized import QuantizedTensor


@dataclass(frozen=True)
class Accounting:
    """Where the bits of a Huffman-coded tensor go; their sum is the body, to the bit."""

    stream: int  # Σ frequency·length, in whole words
    rows: int  # row indices, one per survivor
    counts: int  # survivors of each column
    code: int  # codeword lengths
    ends: int  # bits of each column, for reading columns side by side

    @property
    def payload(self) -> int:
        """What the papers count: stream, row indices and column beginnings."""
        return self.stream + self.rows + self.counts

    @property
    def total(self) -> int:
        return self.payload + self.code + self.ends


def accounting(tensor: QuantizedTensor) -> Accounting:
    layout = layout_of(tensor)
    counts = np.bincount(flat_indices(tensor), minlength=layout.levels)
    lengths = huffman.code_lengths(counts).astype(np.int64)
    return Accounting(
        stream=8 * bits.stream_bytes(int((counts * lengths).sum())),
        rows=0,
        counts=0,
        code=8 * layout.levels,
        ends=8 * layout.columns * ends_type(layout.rows, lengths).itemsize,
    )


def size_bits(tensor: QuantizedTensor) -> int:
    return accounting(tensor).total


def ends_type(rows: int, lengths: np.ndarray) -> np.dtype:
    """The machine width of a column's bits."""
    return machine_type(rows * int(lengths.max(initial=0)))


def encode(tensor: QuantizedTensor) -> bytes:
    layout, flat = layout_of(tensor), flat_indices(tensor)
    code = huffman.Code(huffman.code_lengths(np.bincount(flat, minlength=layout.levels)))
    column_bits = code.lengths[flat].reshape(layout.columns, layout.rows).sum(axis=1, dtype=np.int64)
    ends = column_bits.astype(ends_type(layout.rows, code.lengths)).tobytes()
    return code.lengths.tobytes() + ends + huffman.encode(flat, code)


class Decoder:
    """Random access to the columns of one body, by its `code`, its `stream` and the `ends` of the columns in it."""

    def __init__(self, body: memoryview, layout: Layout) -> None:
        self._layout = layout
        self.code, self.ends, self.stream = opened(body, layout, 0, "hac")

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Indices of the columns [start, stop): [columns, rows]."""
        words, ends = stream_of_columns(self.stream, self.ends, start, stop)
        counts = np.full(stop - start, self._layout.rows, np.int64)
        found = huffman.decode(words, ends[:-1], ends[1:], counts, self.code)
        return found.astype(index_type(self._layout.levels)).reshape(stop - start, self._layout.rows)


def opened(body: memoryview, layout: Layout, between: int, where: str) -> tuple[huffman.Code, np.ndarray, memoryview]:
    """The code, the bit position of each column's beginning and of the last one's end, and the stream.

    between: bytes that lie between the column bits and the stream.
    """
    if len(body) < layout.levels:
        raise PwtError(PwtFault.bad_extent, where, f"{len(body)} bytes cannot hold {layout.levels} codeword lengths")
    code = huffman.Code(np.frombuffer(body[: layout.levels], np.uint8))
    width = ends_type(layout.rows, code.lengths)
    head = layout.levels + layout.columns * width.itemsize
    if len(body) < head + between:
        raise PwtError(PwtFault.bad_extent, where, f"{len(body)} bytes cannot hold {layout.columns} columns")
    column_bits = np.frombuffer(body[layout.levels : head], width)
    if len(column_bits) and int(column_bits.max()) > layout.rows * huffman.MAX_LENGTH:
        raise PwtError(PwtFault.bad_stream, where, "a column has more bits than its entries can take")
    ends = np.concatenate([[0], np.cumsum(column_bits.astype(np.int64))])
    stream = body[head + between :]
    if len(stream) != bits.stream_bytes(int(ends[-1])):
        raise PwtError(PwtFault.bad_extent, where, f"a stream of {len(stream)} bytes, and columns of {ends[-1]} bits")
    return code, ends, stream


def stream_of_columns(stream: memoryview, ends: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The words that the columns [start, stop) lie in, and the columns' bit positions within them."""
    first = int(ends[start]) // 32
    last = -(-int(ends[stop]) // 32)
    return bits.words_of(stream[4 * first : 4 * last]), ends[start : stop + 1] - 32 * first
