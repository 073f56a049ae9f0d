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

    long_symbol = _long_symbol()

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


def product_shac(
    words: np.ndarray,
    ends: np.ndarray,
    counts: np.ndarray,
    rows: np.ndarray,
    code: tuple[np.ndarray, ...],
    codebook: np.ndarray,
    transposed: np.ndarray,
    out: np.ndarray,
) -> bool:
    """Add the columns' products to `out` [columns, batch]; whether every column ended where it must.

    transposed: x as [n, batch]; the rows must exist.
    """
    if transposed.shape[1] == 1:
        return bool(_shac_vector_kernel()(words, ends, counts, rows, *code, codebook, transposed[:, 0], out[:, 0]))
    return bool(_shac_kernel()(words, ends, counts, rows, *code, codebook, transposed, out))


def product_hac(
    words: np.ndarray,
    ends: np.ndarray,
    code: tuple[np.ndarray, ...],
    codebook: np.ndarray,
    transposed: np.ndarray,
    out: np.ndarray,
) -> bool:
    """As `product_shac`, of columns that hold every row."""
    return bool(_hac_kernel()(words, ends, *code, codebook, transposed, out))


def product_im(
    words: np.ndarray, first: int, width: int, codebook: np.ndarray, transposed: np.ndarray, out: np.ndarray
) -> bool:
    """As `product_hac`, of indices of `width` bits; whether every one was below the levels."""
    return bool(_im_kernel()(words, first, width, codebook, transposed, out))


@cache
def _long_symbol() -> Callable[..., int]:
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


@cache
def _shac_kernel() -> Callable[..., bool]:
    import numba

    long_symbol = _long_symbol()

    @numba.njit(nogil=True)
    def product(words, ends, counts, rows, table, aligned, order, lengths, codebook, transposed, out):
        last, place, batch = len(words) - 2, 0, transposed.shape[1]
        for column in range(len(counts)):
            position = ends[column]
            for _ in range(counts[column]):
                index = min(position >> 5, last)
                pair = (np.uint64(words[index]) << np.uint64(32)) | np.uint64(words[index + 1])
                window = (pair >> np.uint64(32 - (position & 31))) & np.uint64(0xFFFFFFFF)
                entry = table[window >> np.uint64(21)]
                if entry == 0:
                    entry = long_symbol(window, aligned, order, lengths)
                value, row = codebook[entry >> 6], rows[place]
                for item in range(batch):
                    out[column, item] += value * transposed[row, item]
                position += entry & 63
                place += 1
            if position != ends[column + 1]:
                return False
        return True

    return product


@cache
def _shac_vector_kernel() -> Callable[..., bool]:
    """Of one x. The columns are four runs whose codewords are read in turn, so that the waiting for one hides behind the
    others; the values are then multiplied column by column. Nothing in either loop depends on where a column ends, and no
    number in the first has a sign, which would be looked at before each look-up.
    """
    import numba

    long_symbol = _long_symbol()
    one, five, high, window_shift, low = (np.uint64(n) for n in (1, 5, 32, 21, 0xFFFFFFFF))
    place_mask, length_mask, symbol_shift = np.uint64(31), np.uint64(63), np.uint64(6)

    @numba.njit(nogil=True)
    def product(words, ends, counts, rows, table, aligned, order, lengths, codebook, x, out):
        last, columns = np.uint64(len(words) - 2), len(counts)
        values = np.empty(len(rows), np.float32)
        # Runs of as many survivors each as whole columns allow: first survivors, bit positions, survivors left.
        place, position, left = np.zeros(4, np.uint64), np.zeros(4, np.uint64), np.zeros(4, np.uint64)
        target, column, before = np.zeros(4, np.uint64), 0, 0
        for run in range(4):
            place[run], position[run] = before, ends[column]
            first, share = before, len(rows) * (run + 1) // 4
            while column < columns and (before < share or run == 3):
                before += counts[column]
                column += 1
            left[run], target[run] = before - first, ends[column]
        together = min(min(left[0], left[1]), min(left[2], left[3]))
        at0, place0 = position[0], place[0]
        at1, place1 = position[1], place[1]
        at2, place2 = position[2], place[2]
        at3, place3 = position[3], place[3]
        step = np.uint64(0)
        while step < together:
            index0 = min(at0 >> five, last)
            index1 = min(at1 >> five, last)
            index2 = min(at2 >> five, last)
            index3 = min(at3 >> five, last)
            pair0 = (np.uint64(words[index0]) << high) | np.uint64(words[index0 + one])
            pair1 = (np.uint64(words[index1]) << high) | np.uint64(words[index1 + one])
            pair2 = (np.uint64(words[index2]) << high) | np.uint64(words[index2 + one])
            pair3 = (np.uint64(words[index3]) << high) | np.uint64(words[index3 + one])
            window0 = (pair0 >> (high - (at0 & place_mask))) & low
            window1 = (pair1 >> (high - (at1 & place_mask))) & low
            window2 = (pair2 >> (high - (at2 & place_mask))) & low
            window3 = (pair3 >> (high - (at3 & place_mask))) & low
            entry0 = np.uint64(table[window0 >> window_shift])
            entry1 = np.uint64(table[window1 >> window_shift])
            entry2 = np.uint64(table[window2 >> window_shift])
            entry3 = np.uint64(table[window3 >> window_shift])
            if entry0 == 0:
                entry0 = np.uint64(long_symbol(window0, aligned, order, lengths))
            if entry1 == 0:
                entry1 = np.uint64(long_symbol(window1, aligned, order, lengths))
            if entry2 == 0:
                entry2 = np.uint64(long_symbol(window2, aligned, order, lengths))
            if entry3 == 0:
                entry3 = np.uint64(long_symbol(window3, aligned, order, lengths))
            values[place0 + step] = codebook[entry0 >> symbol_shift]
            at0 += entry0 & length_mask
            values[place1 + step] = codebook[entry1 >> symbol_shift]
            at1 += entry1 & length_mask
            values[place2 + step] = codebook[entry2 >> symbol_shift]
            at2 += entry2 & length_mask
            values[place3 + step] = codebook[entry3 >> symbol_shift]
            at3 += entry3 & length_mask
            step += one
        position[0], position[1], position[2], position[3] = at0, at1, at2, at3
        for run in range(4):
            at, step = position[run], together
            while step < left[run]:
                index = min(at >> five, last)
                pair = (np.uint64(words[index]) << high) | np.uint64(words[index + one])
                window = (pair >> (high - (at & place_mask))) & low
                entry = np.uint64(table[window >> window_shift])
                if entry == 0:
                    entry = np.uint64(long_symbol(window, aligned, order, lengths))
                values[place[run] + step] = codebook[entry >> symbol_shift]
                at += entry & length_mask
                step += one
            if at != target[run]:
                return False
        number = np.uint64(0)
        for column in range(columns):
            beyond = number + np.uint64(counts[column])
            even, odd = np.float32(0), np.float32(0)
            while number + one < beyond:
                even += values[number] * x[rows[number]]
                odd += values[number + one] * x[rows[number + one]]
                number += one + one
            if number < beyond:
                even += values[number] * x[rows[number]]
                number += one
            out[column] = even + odd
        return True

    return product


@cache
def _hac_kernel() -> Callable[..., bool]:
    import numba

    long_symbol = _long_symbol()

    @numba.njit(nogil=True)
    def product(words, ends, table, aligned, order, lengths, codebook, transposed, out):
        last, batch = len(words) - 2, transposed.shape[1]
        for column in range(len(ends) - 1):
            position = ends[column]
            total = np.float32(0)
            for row in range(transposed.shape[0]):
                index = min(position >> 5, last)
                pair = (np.uint64(words[index]) << np.uint64(32)) | np.uint64(words[index + 1])
                window = (pair >> np.uint64(32 - (position & 31))) & np.uint64(0xFFFFFFFF)
                entry = table[window >> np.uint64(21)]
                if entry == 0:
                    entry = long_symbol(window, aligned, order, lengths)
                value = codebook[entry >> 6]
                if batch == 1:
                    total += value * transposed[row, 0]
                elif value != 0:
                    for item in range(batch):
                        out[column, item] += value * transposed[row, item]
                position += entry & 63
            if batch == 1:
                out[column, 0] = total
            if position != ends[column + 1]:
                return False
        return True

    return product


@cache
def _im_kernel() -> Callable[..., bool]:
    import numba

    @numba.njit(nogil=True)
    def product(words, first, width, codebook, transposed, out):
        position, levels, batch = first, len(codebook), transposed.shape[1]
        for column in range(out.shape[0]):
            total = np.float32(0)
            for row in range(transposed.shape[0]):
                index = position >> 5
                pair = (np.uint64(words[index]) << np.uint64(32)) | np.uint64(words[index + 1])
                symbol = ((pair << np.uint64(position & 31)) >> np.uint64(32)) >> np.uint64(32 - width)
                if symbol >= levels:
                    return False
                value = codebook[symbol]
                if batch == 1:
                    total += value * transposed[row, 0]
                elif value != 0:
                    for item in range(batch):
                        out[column, item] += value * transposed[row, item]
                position += width
            if batch == 1:
                out[column, 0] = total
        return True

    return product
