"""HAC and sHAC: canonical Huffman codewords, column after column; of all entries, or of survivors with their rows."""

from __future__ import annotations

import numpy as np

from .bits import Bits, stream_bytes, unsigned
from .faults import PwtFault, require
from .matrix import Matrix
from .plain import scattered

_LONGEST = 32


class Code:
    """A complete canonical code: shorter codewords come first, and among equals those of smaller symbols."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.longest = int(lengths.max(initial=0))
        require(self.longest <= _LONGEST, PwtFault.bad_code, "huffman", f"a codeword of {self.longest} bits")
        used = np.flatnonzero(lengths)
        self.symbols = used[np.argsort(lengths[used], kind="stable")]
        self.lengths = lengths[self.symbols].astype(np.int64)
        steps = [1 << (_LONGEST - length) for length in self.lengths.tolist()]
        complete = sum(steps) == 1 << _LONGEST if len(steps) > 1 else self.longest <= 1
        require(complete, PwtFault.bad_code, "huffman", "the lengths are not those of a complete prefix code")
        # Left-aligned in 32 bits, codewords ascend: a window's symbol is the last whose codeword is not above it.
        self.codewords = (np.cumsum([0, *steps])[:-1]).astype(np.uint64)

    def decode(self, stream: Bits, begins: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Symbols of columns that begin and end at these bits, one step of all columns at a time; int64."""
        found = np.zeros(int(counts.sum()), np.int64)
        require(len(self.symbols) or not len(found), PwtFault.bad_code, "huffman", "survivors, and no codeword")
        longest_first = np.argsort(counts, kind="stable")[::-1]
        position, place = begins[longest_first], (np.cumsum(counts) - counts)[longest_first]
        running = np.searchsorted(-counts[longest_first], -np.arange(int(counts.max(initial=0))), side="left")
        for step, now in enumerate(running.tolist()):
            word = np.searchsorted(self.codewords, stream.at(position[:now]), side="right") - 1
            found[place[:now] + step] = self.symbols[word]
            position[:now] += self.lengths[word]
        require((position == ends[longest_first]).all(), PwtFault.bad_stream, "huffman", "a column ends elsewhere")
        return found


class HuffmanColumns:
    """Both formats: `sparse` has counts and rows between the columns' lengths and the stream."""

    def __init__(self, body: memoryview, matrix: Matrix, codebook: np.ndarray, *, sparse: bool) -> None:
        self._matrix, self._codebook, self._sparse = matrix, codebook, sparse
        at = matrix.levels
        require(len(body) >= at, PwtFault.bad_extent, "huffman", "it ends within the codeword lengths")
        self._code = Code(np.frombuffer(body[:at], np.uint8))
        sizes, at = _numbers(body, at, matrix.columns, matrix.rows * self._code.longest)
        self._counts = np.full(matrix.columns, matrix.rows, np.int64)
        if sparse:
            self._counts, at = _numbers(body, at, matrix.columns, matrix.rows)
            fits = (self._counts <= matrix.rows).all()
            require(fits, PwtFault.bad_index, "shac", "a column has more survivors than rows")
            whole = matrix.zero is not None or (self._counts == matrix.rows).all()
            require(whole, PwtFault.bad_index, "shac", "an entry is missing, and no level is reserved for pruned ones")
            self._rows, at = _numbers(body, at, int(self._counts.sum()), max(0, matrix.rows - 1))
        fits = (sizes <= matrix.rows * _LONGEST).all()
        require(fits, PwtFault.bad_stream, "huffman", "a column has more bits than its entries can take")
        self._ends = np.concatenate([[0], np.cumsum(sizes.astype(np.int64))])
        expected = stream_bytes(int(self._ends[-1]))
        require(len(body) - at == expected, PwtFault.bad_extent, "huffman", f"a stream that is not {expected} bytes")
        self._stream = body[at:]

    def values(self, start: int, stop: int) -> np.ndarray:
        counts, size = self._counts[start:stop], (stop - start) * self._matrix.rows
        if not self._sparse:
            return self._decoded(start, stop)
        begin = int(self._counts[:start].sum())
        place = scattered(self._rows[begin : begin + int(counts.sum())], counts, self._matrix.rows, "shac")
        dense = np.full(size, self._codebook[self._matrix.zero or 0], np.float32)
        dense[place] = self._decoded(start, stop)
        return dense

    def _decoded(self, start: int, stop: int) -> np.ndarray:
        first = int(self._ends[start]) // 8
        ends = self._ends[start : stop + 1] - 8 * first
        stream = Bits(self._stream[first : first + (int(ends[-1]) + 7) // 8])
        return self._codebook[self._code.decode(stream, ends[:-1], ends[1:], self._counts[start:stop])]


def _numbers(body: memoryview, at: int, count: int, largest: int) -> tuple[np.ndarray, int]:
    """`count` numbers of the width that holds `largest`, and where they end."""
    kind = unsigned(largest)
    end = at + count * kind.itemsize
    require(len(body) >= end, PwtFault.bad_extent, "huffman", f"it ends within {count} numbers")
    found = np.frombuffer(body[at:end], kind)
    return found.astype(np.int64) if largest < 1 << 62 else found, end
