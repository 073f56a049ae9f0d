"""Compiled kernels for large tensors, where numba is installed (the extra `fast`); without it numpy does the same work.

A kernel is compiled at its first use, which takes a second or two, so that small inputs stay with numpy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from core.encoding.huffman import Code

SMALLEST = 1 << 18


@cache
def available() -> bool:
    return importlib.util.find_spec("numba") is not None


def worthwhile(symbols: int) -> bool:
    """Whether compiled code would be faster for this many symbols, its compilation counted in."""
    return symbols >= SMALLEST and available()


def rans_symbols(
    state: np.ndarray,
    words: np.ndarray,
    taken: int,
    symbol_of_slot: np.ndarray,
    frequency_of_slot: np.ndarray,
    offset_of_slot: np.ndarray,
    precision: int,
    contexts: np.ndarray,
    found: np.ndarray,
) -> int:
    """`rans.Stream.symbols` in place on `state` and `found`; the words taken, more than there are if they ran out."""
    steps = (frequency_of_slot << 16 | offset_of_slot).astype(np.uint32)
    return int(_rans_kernel()(state, words, taken, symbol_of_slot, steps, precision, contexts, found))


@cache
def _rans_kernel() -> Callable[..., int]:
    import numba

    @numba.njit(nogil=True)
    def decode(state, words, taken, symbol_of_slot, steps, precision, contexts, found):
        lanes = len(state)
        mask = np.uint32((1 << precision) - 1)
        x = np.empty(lanes, np.uint32)
        for lane in range(lanes):
            x[lane] = state[lane]
        short, several = np.int64(len(words)), len(contexts) > 0
        for first in range(0, len(found), lanes):
            for lane in range(min(lanes, len(found) - first)):
                now = x[lane]
                slot = now & mask
                if several:
                    slot |= np.uint32(contexts[first + lane]) << np.uint32(precision)
                step = steps[slot]
                found[first + lane] = symbol_of_slot[slot]
                now = np.uint32((step >> np.uint32(16)) * (now >> np.uint32(precision)) + (step & np.uint32(0xFFFF)))
                if now < np.uint32(65536):
                    if taken >= short:
                        return short + 1
                    now = np.uint32((now << np.uint32(16)) | np.uint32(words[taken]))
                    taken += 1
                x[lane] = now
        for lane in range(lanes):
            state[lane] = x[lane]
        return taken

    return decode


def huffman_symbols(
    words: np.ndarray, begins: np.ndarray, counts: np.ndarray, code: Code, found: np.ndarray
) -> np.ndarray:
    """`huffman.decode` into `found`; the bit position that each stream reached."""
    reached = np.empty(len(begins), np.int64)
    _huffman_kernel()(words, begins, counts, *code.tables, found, reached)
    return reached


@cache
def _huffman_kernel() -> Callable[..., None]:
    import numba

    long_symbol = symbol_beyond_table()

    @numba.njit(nogil=True)
    def decode(words, begins, counts, table, aligned, order, lengths, found, reached):
        place = 0
        last = len(words) - 2
        for stream in range(len(begins)):
            position = begins[stream]
            for _ in range(counts[stream]):
                index = min(position >> 5, last)
                pair = (np.uint64(words[index]) << np.uint64(32)) | np.uint64(words[index + 1])
                window = (pair >> np.uint64(32 - (position & 31))) & np.uint64(0xFFFFFFFF)
                entry = table[window >> np.uint64(21)]
                if entry == 0:
                    entry = long_symbol(window, aligned, order, lengths)
                found[place] = entry >> 6
                position += entry & 63
                place += 1
            reached[stream] = position

    return decode


def place(
    tokens: np.ndarray,
    values: np.ndarray,
    words: np.ndarray,
    width_of: np.ndarray,
    smallest: np.ndarray,
    flat: np.ndarray,
) -> bool:
    """Writes each value into `flat` at the distance that its token and extra bits say; whether all lie in it.

    width_of, smallest: of every token (`core.encoding.gaps`). words: of `bits.words_of`, which hold all extra bits.
    """
    return bool(_place_kernel()(tokens, values, words, width_of, smallest, flat))


@cache
def _place_kernel() -> Callable[..., bool]:
    import numba

    @numba.njit(nogil=True)
    def place(tokens, values, words, width_of, smallest, flat):
        position, at = np.int64(0), np.int64(-1)
        for survivor in range(len(tokens)):
            token = tokens[survivor]
            width = width_of[token]
            at += smallest[token] + 1
            if width > 0:
                index = position >> 5
                pair = (np.uint64(words[index]) << np.uint64(32)) | np.uint64(words[index + 1])
                window = (pair >> np.uint64(32 - (position & 31))) & np.uint64(0xFFFFFFFF)
                at += np.int64(window >> np.uint64(32 - width))
                position += width
            if at >= len(flat):
                return False
            flat[at] = values[survivor]
        return True

    return place


@cache
def symbol_beyond_table() -> Callable[..., int]:
    """symbol·64 + length of a codeword that is longer than the table reaches.

    Kernels call it rarely and read the table themselves: a call counts references to every array, which takes ten times as
    long as reading a short codeword.
    """
    import numba

    @numba.njit
    def long_symbol(window, aligned, order, lengths):
        at, beyond = 0, len(aligned)
        while beyond - at > 1:
            middle = (at + beyond) >> 1
            if aligned[middle] <= window:
                at = middle
            else:
                beyond = middle
        return order[at] * 64 + lengths[at]

    return long_symbol
