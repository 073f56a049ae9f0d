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
