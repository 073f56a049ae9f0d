"""Bit streams: most significant bit first, cut into 32-bit words, the last word padded with zeros."""

from __future__ import annotations

import numpy as np

_PACKED_AT_ONCE = 1 << 20
_UNPACKED_AT_ONCE = 1 << 13  # some 50 bytes are held for each


def stream_bytes(bits: int) -> int:
    """The bytes of a stream of `bits` bits, with its padding."""
    return (bits + 31) // 32 * 4


def pack(codes: np.ndarray, lengths: np.ndarray) -> bytes:
    """Concatenate `codes` (each below 2**length, length at most 32) into a stream.

    A code meets at most two words. The parts that fall into one word do not overlap, so that their sum is their union, and
    a sum of them stays below 2**32: exact in the float64 of bincount.
    """
    lengths = lengths.astype(np.int64, copy=False)
    total = int(lengths.sum())
    words = np.zeros(stream_bytes(total) // 4 + 1, np.uint32)
    start = 0
    for first in range(0, len(codes), _PACKED_AT_ONCE):
        size = lengths[first : first + _PACKED_AT_ONCE]
        code = codes[first : first + _PACKED_AT_ONCE].astype(np.uint64)
        begin = start + np.cumsum(size) - size
        start += int(size.sum())
        index = begin >> 5
        placed = code << (64 - size - (begin & 31)).astype(np.uint64)
        base = int(index[0]) if len(index) else 0
        for part, at in ((placed >> np.uint64(32), index - base), (placed & np.uint64(0xFFFFFFFF), index - base + 1)):
            sums = np.bincount(at, weights=part.astype(np.float64)).astype(np.uint32)
            words[base : base + len(sums)] += sums[: len(words) - base]
    return words[: stream_bytes(total) // 4].astype(">u4").tobytes()


def words_of(stream: bytes | memoryview) -> np.ndarray:
    """The words of a stream, uint32, with two words of zeros behind them for `peek`."""
    return np.concatenate([np.frombuffer(stream, ">u4").astype(np.uint32), np.zeros(2, np.uint32)])


def peek(words: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The 32 bits that begin at each bit position, as uint64; positions past the end read zeros or the last word."""
    index = position >> 5
    high = words.take(index, mode="clip").astype(np.uint64)
    low = words.take(index + 1, mode="clip")
    return (((high << np.uint64(32)) | low) >> (32 - (position & 31)).astype(np.uint64)) & np.uint64(0xFFFFFFFF)


def unpack(words: np.ndarray, first: int, count: int, width: int) -> np.ndarray:
    """`count` numbers of `width` bits each (0 to 32) from the bit position `first` on, uint32."""
    if width == 0:
        return np.zeros(count, np.uint32)
    found = np.empty(count, np.uint32)
    for start in range(0, count, _UNPACKED_AT_ONCE):
        stop = min(count, start + _UNPACKED_AT_ONCE)
        position = first + np.arange(start, stop, dtype=np.int64) * width
        found[start:stop] = peek(words, position) >> np.uint64(32 - width)
    return found


def unpack_varying(words: np.ndarray, widths: np.ndarray, first: int = 0) -> np.ndarray:
    """Numbers of these `widths` (each 0 to 32) from the bit position `first` on, uint64."""
    widths = widths.astype(np.int64, copy=False)
    position = first + np.cumsum(widths) - widths
    return np.where(widths > 0, peek(words, position) >> (32 - widths).astype(np.uint64), np.uint64(0))
