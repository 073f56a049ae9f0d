"""Numbers of any width out of a bit stream, most significant bit first, many at a time."""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 20


class Bits:
    """A stream seen as one overlapping 64-bit window per byte, so that any 32 bits are one gather and two shifts."""

    def __init__(self, stream: bytes | memoryview) -> None:
        padded = bytes(stream) + bytes(16)
        self._windows = np.ndarray((len(padded) - 8,), ">u8", padded, strides=(1,))

    def at(self, position: np.ndarray, width: np.ndarray | int = 32) -> np.ndarray:
        """The `width` (0 to 32) bits from each bit position on, uint64; past the end they are zero."""
        byte = np.minimum(position >> 3, len(self._windows) - 1)
        window = self._windows[byte].astype(np.uint64) << (position & 7).astype(np.uint64)
        return (window >> np.uint64(32)) >> (32 - np.asarray(width, np.int64)).astype(np.uint64)

    def row(self, first: int, count: int, width: int) -> np.ndarray:
        """`count` numbers of one width, one after the other, uint32."""
        found = np.empty(count, np.uint32)
        for start in range(0, count, _CHUNK):
            stop = min(count, start + _CHUNK)
            found[start:stop] = self.at(first + np.arange(start, stop, dtype=np.int64) * width, width)
        return found


def stream_bytes(bits: int) -> int:
    """The bytes of a stream: whole words of 32 bits."""
    return -(-bits // 32) * 4


def unsigned(largest: int) -> np.dtype:
    """The narrowest little-endian unsigned type that holds a number."""
    return np.dtype(next(kind for kind in ("u1", "<u2", "<u4", "<u8") if largest < 256 ** int(kind[-1])))
