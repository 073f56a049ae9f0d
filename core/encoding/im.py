"""IM, the index map: every entry as its index of ⌈log2 k⌉ bits.

Source: Marinò, Ghidoli, Frasca, Malchiodi, "Compression strategies and space-conscious representations for deep neural
networks" (arXiv 2007.07967) and its extension (arXiv 2108.12704).
"""

from __future__ import annotations

import numpy as np

from core.encoding import bits
from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import Layout, flat_indices, index_type, layout_of
from core.encoding.quantized import QuantizedTensor


def index_bits(levels: int) -> int:
    """⌈log2 k⌉; 0 where there is one level only."""
    return (levels - 1).bit_length()


def size_bits(tensor: QuantizedTensor) -> int:
    """nm·⌈log2 k⌉, in whole words; without the codebook."""
    layout = layout_of(tensor)
    return 8 * bits.stream_bytes(layout.entries * index_bits(layout.levels))


def encode(tensor: QuantizedTensor) -> bytes:
    width = index_bits(len(tensor.codebook))
    flat = flat_indices(tensor)
    return bits.pack(flat, np.full(len(flat), width)) if width else b""


class Decoder:
    """Random access to the columns of one body."""

    def __init__(self, body: memoryview, layout: Layout) -> None:
        self._layout = layout
        self.width = index_bits(layout.levels)
        expected = bits.stream_bytes(layout.entries * self.width)
        if len(body) != expected:
            raise PwtError(PwtFault.bad_extent, "im", f"{len(body)} bytes of indices where {expected} belong")
        self._body = body

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Indices of the columns [start, stop): [columns, rows]."""
        count = (stop - start) * self._layout.rows
        words, first = self.words(start, stop)
        found = bits.unpack(words, first, count, self.width)
        if count and int(found.max()) >= self._layout.levels:
            raise PwtError(PwtFault.bad_index, "im", f"an index is not below the {self._layout.levels} levels")
        return found.astype(index_type(self._layout.levels)).reshape(stop - start, self._layout.rows)

    def words(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        """The words that the columns [start, stop) lie in, and the bit position of the first index in them."""
        first = start * self._layout.rows * self.width
        end = (stop * self._layout.rows * self.width + 31) // 32
        return bits.words_of(self._body[first // 32 * 4 : end * 4]), first % 32
