"""Compiled products with what is coded, a column at a time and without decoding it first (`core.encoding.fast`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from core.encoding.fast import symbol_beyond_table


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
def _shac_kernel() -> Callable[..., bool]:
    import numba

    long_symbol = symbol_beyond_table()

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

    long_symbol = symbol_beyond_table()
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

    long_symbol = symbol_beyond_table()

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
