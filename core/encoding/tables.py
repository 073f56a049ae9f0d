"""Frequencies as `ans` writes them: exponential Golomb codes, one bit stream filled to a whole byte.

A table is one number per symbol, or for tables of contexts one per knot: knots stand at every 2^g-th symbol, between which
frequencies are straight lines. That is what makes tables for sixteen contexts of 256 symbols as small as one whole table;
all arithmetic is of integers, so that every machine reads the same frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.encoding import bits
from core.encoding.errors import PwtError, PwtFault

MAX_STRIDE_LOG2 = 8
LARGEST = (1 << 16) - 1  # of a number in a table


def golomb_lengths(values: np.ndarray, order: int) -> np.ndarray:
    """Bits of exponential Golomb codes: v + 2**order in binary, behind one zero less its bits than `order`."""
    magnitude = np.frexp((values + (1 << order)).astype(np.float64))[1].astype(np.int64)
    return 2 * magnitude - 1 - order


def cheapest_order(values: np.ndarray, beyond: int) -> tuple[int, int]:
    """The order below `beyond` whose codes are shortest together, and their bits."""
    return min(((order, int(golomb_lengths(values, order).sum())) for order in range(beyond)), key=lambda pair: pair[1])


def written(tables: Sequence[tuple[np.ndarray, int]]) -> bytes:
    """Tables with their orders."""
    codes = [(values.reshape(-1) + (1 << order), golomb_lengths(values.reshape(-1), order)) for values, order in tables]
    packed = bits.pack(np.concatenate([code for code, _ in codes]), np.concatenate([size for _, size in codes]))
    return packed[: (sum(int(size.sum()) for _, size in codes) + 7) // 8]


def read(body: memoryview, at: int, sizes: Sequence[int], orders: Sequence[int]) -> tuple[list[np.ndarray], int]:
    """Tables of so many numbers each, int64, and where they end. A code has at most 33 bits, so that the text of them is
    bounded by the sizes."""
    text = "".join(f"{byte:08b}" for byte in body[at : at + 5 * sum(sizes)])
    position, found = 0, []
    for size, order in zip(sizes, orders, strict=True):
        values = np.empty(size, np.int64)
        for number in range(size):
            one = text.find("1", position)
            end = 2 * one - position + order + 1
            if one < 0 or one - position > 16 or end > len(text):
                raise PwtError(PwtFault.bad_model, "ans", "the frequencies are cut short or too large")
            values[number] = int(text[one:end], 2) - (1 << order)
            position = end
        found.append(values)
    if "1" in text[position : -(-position // 8) * 8]:
        raise PwtError(PwtFault.bad_model, "ans", "the bits behind the frequencies are not zero")
    return found, at + (position + 7) // 8


def knots_of(symbols: int, stride_log2: int) -> int:
    """How many knots span so many symbols: the last one is at the last symbol or behind it."""
    return -(-(symbols - 1) // (1 << stride_log2)) + 1


def between(knots: np.ndarray, stride_log2: int, symbols: int, precision: int) -> np.ndarray:
    """Frequencies of sum 2**precision, int64 [contexts, symbols], from knots [contexts, knots] (docs/pwt.md).

    Raises PwtError where more symbols have a frequency than there are slots.
    """
    place = np.arange(symbols)
    index, rest = place >> stride_log2, place & ((1 << stride_log2) - 1)
    padded = np.concatenate([knots, np.zeros((len(knots), 1), np.int64)], axis=1)
    weights = padded[:, index] * ((1 << stride_log2) - rest) + padded[:, index + 1] * rest
    empty = weights.sum(axis=1) == 0
    weights[empty, 0] = 1
    used = weights > 0
    free = (1 << precision) - used.sum(axis=1, keepdims=True)
    if (free < 0).any():
        raise PwtError(PwtFault.bad_model, "ans", f"more symbols than 2^{precision} slots")
    found = np.where(used, 1 + weights * free // weights.sum(axis=1, keepdims=True), 0)
    found[np.arange(len(found)), found.argmax(axis=1)] += (1 << precision) - found.sum(axis=1)
    return found
