"""Canonical Huffman codes: lengths from counts, codewords from lengths, and decoding of many streams side by side.

Codewords of one length are consecutive numbers in the order of their symbols, and shorter ones come first; so the lengths,
one byte per symbol, are the whole code. Written left-aligned in 32 bits, the first codewords of the lengths ascend, and a
window of 32 bits has the length of the largest first codeword that is not above it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from core.encoding import bits, fast
from core.encoding.errors import PwtError, PwtFault

MAX_LENGTH = 32
TABLE_BITS = 11


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Optimal codeword lengths, uint8 [symbols]; 0 for what does not occur, 1 where only one symbol does.

    Where an optimal codeword would exceed 32 bits (which takes millions of symbols in the ratios of Fibonacci numbers), the
    counts are halved, rounding up, until none does.
    """
    counts = counts.astype(np.int64)
    while True:
        lengths = _optimal_lengths(counts)
        if int(lengths.max(initial=0)) <= MAX_LENGTH:
            return lengths.astype(np.uint8)
        counts = (counts + 1) // 2


def _optimal_lengths(counts: np.ndarray) -> np.ndarray:
    lengths = np.zeros(len(counts), np.int64)
    used = np.flatnonzero(counts)
    if len(used) == 1:
        lengths[used] = 1
        return lengths
    heap = [(int(counts[symbol]), number) for number, symbol in enumerate(used)]
    heapq.heapify(heap)
    parents: list[int] = [0] * (2 * len(used))
    following = len(used)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        parents[first[1]] = parents[second[1]] = following
        heapq.heappush(heap, (first[0] + second[0], following))
        following += 1
    depths = [0] * following
    for node in range(following - 2, -1, -1):
        depths[node] = depths[parents[node]] + 1
    lengths[used] = depths[: len(used)]
    return lengths


@dataclass(frozen=True)
class Code:
    """A complete canonical code by its lengths, uint8 [symbols]."""

    lengths: np.ndarray

    def __post_init__(self) -> None:
        used = self.lengths[self.lengths > 0].astype(np.int64)
        if len(used) and int(used.max()) > MAX_LENGTH:
            raise PwtError(PwtFault.bad_code, "huffman", f"a codeword of {int(used.max())} bits; at most {MAX_LENGTH}")
        full = sum(int(count) << (MAX_LENGTH - size) for size, count in enumerate(np.bincount(used)) if size)
        if (len(used) > 1 and full != 1 << MAX_LENGTH) or (len(used) == 1 and int(used[0]) != 1):
            raise PwtError(PwtFault.bad_code, "huffman", "the codeword lengths are not those of a complete prefix code")

    @cached_property
    def order(self) -> np.ndarray:
        """The used symbols, by length and then by number."""
        used = np.flatnonzero(self.lengths)
        return used[np.argsort(self.lengths[used], kind="stable")]

    @cached_property
    def aligned(self) -> np.ndarray:
        """The codewords of `order`, left-aligned in 32 bits, uint64, ascending."""
        steps = np.left_shift(1, MAX_LENGTH - self.lengths[self.order].astype(np.int64))
        return (np.cumsum(steps) - steps).astype(np.uint64)

    @cached_property
    def codewords(self) -> np.ndarray:
        """uint64 [symbols]."""
        found = np.zeros(len(self.lengths), np.uint64)
        found[self.order] = self.aligned >> (MAX_LENGTH - self.lengths[self.order].astype(np.int64)).astype(np.uint64)
        return found

    @cached_property
    def table(self) -> np.ndarray:
        """By a window's first 11 bits: symbol·64 + length; 0 where the codeword is longer."""
        if len(self.order) == 0:
            return np.zeros(1 << TABLE_BITS, np.int64)
        edges = np.arange(1 << TABLE_BITS, dtype=np.uint64) << np.uint64(MAX_LENGTH - TABLE_BITS)
        at = np.searchsorted(self.aligned, edges, side="right") - 1
        symbol = self.order[at]
        length = self.lengths[symbol].astype(np.int64)
        return np.where(length <= TABLE_BITS, symbol * 64 + length, 0)

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What compiled decoders need: the table, and codewords, symbols and lengths for what is longer than it."""
        narrow = self.table.astype(np.uint32)  # half the room, in a cache that it shares with x
        return narrow, self.aligned, self.order, self.lengths[self.order].astype(np.int64)

    def symbols_at(self, windows: np.ndarray) -> np.ndarray:
        """symbol·64 + length of the codeword that each 32-bit window begins with, int64."""
        found = self.table.take((windows >> np.uint64(MAX_LENGTH - TABLE_BITS)).astype(np.int64))
        long = np.flatnonzero(found == 0)
        if len(long):
            symbol = self.order[np.searchsorted(self.aligned, windows[long], side="right") - 1]
            found[long] = symbol * 64 + self.lengths[symbol]
        return found


def encode(symbols: np.ndarray, code: Code) -> bytes:
    return bits.pack(code.codewords[symbols], code.lengths[symbols])


def decode(words: np.ndarray, begins: np.ndarray, ends: np.ndarray, counts: np.ndarray, code: Code) -> np.ndarray:
    """The symbols of streams that lie in one run of `words`, one stream after the other, int64 [sum of counts].

    begins, ends: bit positions of the streams; counts: symbols of each. All streams advance together, one symbol a step.
    """
    found = np.zeros(int(counts.sum()), np.int64)
    if len(found) and len(code.order) == 0:
        raise PwtError(PwtFault.bad_code, "huffman", "symbols to decode, and no codeword")
    if fast.worthwhile(len(found)):
        reached = fast.huffman_symbols(words, begins, counts, code, found)
    elif len(found):
        reached = _decode_side_by_side(words, begins, counts, code, found)
    else:
        reached = begins
    if (reached != ends).any():
        raise PwtError(PwtFault.bad_stream, "huffman", "a column does not end where it must")
    return found


def _decode_side_by_side(
    words: np.ndarray, begins: np.ndarray, counts: np.ndarray, code: Code, found: np.ndarray
) -> np.ndarray:
    by_length = np.argsort(-counts, kind="stable")  # so that the streams that still run are the first ones
    position, left = begins[by_length], counts[by_length]
    place = (np.cumsum(counts) - counts)[by_length]
    running = len(left)
    for step in range(int(left[0])):
        while left[running - 1] <= step:
            running -= 1
        entry = code.symbols_at(bits.peek(words, position[:running]))
        found[place[:running] + step] = entry >> 6
        position[:running] += entry & 63
    reached = np.empty_like(position)
    reached[by_length] = position
    return reached
