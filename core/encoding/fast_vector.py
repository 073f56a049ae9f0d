"""The compiled product of one vector with a matrix in sHAC: codewords are read first, all columns through, and multiplied after.

Reading is bound by waiting, as a codeword begins where the one before ends. So the columns are four runs that are read in
turn, three look-ups follow one reading of the stream, and a look-up gives values themselves: two at a time where codewords
are short enough for two in a window. Nothing in these loops depends on where a column ends, and no number in them has a
sign, which would be looked at before each look-up. The runs are written out one beside the other, and so are the two ways
of reading: a call would count references to every array, which takes longer than what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from core.encoding.fast import symbol_beyond_table
from core.encoding.huffman import TABLE_BITS, Code

_PAIRS_FROM = 1.6
"""Values in a window, on average, from which on reading two at a time is faster."""
_BEYOND = 64


@dataclass(frozen=True)
class WindowValues:
    """What each window of TABLE_BITS bits begins with, uint64 [windows].

    One value: its float32 bits << 32 | the bits of its codeword; _BEYOND, where the codeword is longer than the window.
    With `pairs` two: the float32 bits of the second << 32 | of the first, and in `steps` (uint8 [windows], else empty)
    how many there are << 6 | the bits that they take; 0 where the first is longer than the window.
    """

    pairs: bool
    values: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, code: Code, codebook: np.ndarray) -> WindowValues:
        table = code.table
        stored, high = _float_bits(codebook).astype(np.uint64), np.uint64(32)
        there, length = table > 0, table & 63
        first = np.where(there, stored[table >> 6], 0)
        # What a window ends within is filled up with zeros here, and recognised by its length.
        behind = table[(np.arange(1 << TABLE_BITS) << length) & ((1 << TABLE_BITS) - 1)]
        both_bits = length + (behind & 63)
        both = there & (behind > 0) & (both_bits <= TABLE_BITS)
        if 1 + both.mean() < _PAIRS_FROM:
            return cls(False, first << high | np.where(there, length, _BEYOND).astype(np.uint64), np.empty(0, np.uint8))
        second = np.where(both, stored[behind >> 6], 0)
        steps = np.where(both, 2 << 6 | both_bits, np.where(there, 1 << 6 | length, 0))
        return cls(True, second << high | first, steps.astype(np.uint8))


def product_shac_vector(
    words: np.ndarray,
    ends: np.ndarray,
    counts: np.ndarray,
    rows: np.ndarray,
    code: Code,
    codebook: np.ndarray,
    windows: WindowValues,
    x: np.ndarray,
    out: np.ndarray,
) -> bool:
    """Write x times each column to `out`; whether the codewords ended where they must. The rows must exist."""
    values = np.empty(len(rows), np.uint32)
    beyond = code.tables[1:]
    if windows.pairs:
        whole = _pairs_kernel()(
            words, ends, counts, windows.values, windows.steps, *beyond, _float_bits(codebook), values
        )
    else:
        whole = _singles_kernel()(words, ends, counts, windows.values, *beyond, _float_bits(codebook), values)
    if whole:
        _multiply_kernel()(counts, rows, values.view(np.float32), x, out)
    return bool(whole)


def _float_bits(codebook: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(codebook, np.float32).view(np.uint32)


@cache
def _four_runs() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Runs of as many survivors each as whole columns allow: first survivor, the one behind the last; bit position, and
    the one where it must end."""
    import numba

    @numba.njit(nogil=True)
    def runs(ends, counts, survivors):
        first, beyond = np.zeros(4, np.uint64), np.zeros(4, np.uint64)
        position, target = np.zeros(4, np.uint64), np.zeros(4, np.uint64)
        column, before = 0, 0
        for run in range(4):
            first[run], position[run] = before, ends[column]
            share = survivors * (run + 1) // 4
            while column < len(counts) and (before < share or run == 3):
                before += counts[column]
                column += 1
            beyond[run], target[run] = before, ends[column]
        return first, beyond, position, target

    return runs


@cache
def _one_by_one() -> Callable[..., int]:
    """Read survivors from `place` to `beyond`, of codewords of any length; the bit position reached."""
    import numba

    symbol_at = symbol_beyond_table()
    one, five, high, low, in_word, in_entry, above = (np.uint64(n) for n in (1, 5, 32, 0xFFFFFFFF, 31, 63, 6))

    @numba.njit(nogil=True)
    def read(words, position, place, beyond, aligned, order, lengths, codebook, values):
        last = np.uint64(len(words) - 2)
        while place < beyond:
            index = min(position >> five, last)
            pair = (np.uint64(words[index]) << high) | np.uint64(words[index + one])
            entry = np.uint64(symbol_at((pair >> (high - (position & in_word))) & low, aligned, order, lengths))
            values[place] = codebook[entry >> above]
            position += entry & in_entry
            place += one
        return position

    return read


@cache
def _singles_kernel() -> Callable[..., bool]:
    import numba

    four_runs, one_by_one = _four_runs(), _one_by_one()
    one, three, five, high, top = (np.uint64(n) for n in (1, 3, 5, 32, 64 - TABLE_BITS))
    in_word, in_entry, beyond_window = (np.uint64(n) for n in (31, 63, _BEYOND))

    @numba.njit(nogil=True)
    def read(words, ends, counts, windows, aligned, order, lengths, codebook, values):
        first, beyond, position, target = four_runs(ends, counts, len(values))
        last = np.uint64(len(words) - 2)
        together = min(min(beyond[0] - first[0], beyond[1] - first[1]), min(beyond[2] - first[2], beyond[3] - first[3]))
        place0, place1, place2, place3 = first[0], first[1], first[2], first[3]
        at0, at1, at2, at3 = position[0], position[1], position[2], position[3]
        step = np.uint64(0)
        while step + three <= together:
            before0, before1, before2, before3 = at0, at1, at2, at3
            index0, index1 = min(at0 >> five, last), min(at1 >> five, last)
            index2, index3 = min(at2 >> five, last), min(at3 >> five, last)
            bits0 = ((np.uint64(words[index0]) << high) | np.uint64(words[index0 + one])) << (at0 & in_word)
            bits1 = ((np.uint64(words[index1]) << high) | np.uint64(words[index1 + one])) << (at1 & in_word)
            bits2 = ((np.uint64(words[index2]) << high) | np.uint64(words[index2 + one])) << (at2 & in_word)
            bits3 = ((np.uint64(words[index3]) << high) | np.uint64(words[index3 + one])) << (at3 & in_word)
            seen = np.uint64(0)
            for number in range(3):  # of 64 bits at least 33 are there: three windows
                here = step + np.uint64(number)
                entry0, entry1 = windows[bits0 >> top], windows[bits1 >> top]
                entry2, entry3 = windows[bits2 >> top], windows[bits3 >> top]
                values[place0 + here], values[place1 + here] = np.uint32(entry0 >> high), np.uint32(entry1 >> high)
                values[place2 + here], values[place3 + here] = np.uint32(entry2 >> high), np.uint32(entry3 >> high)
                bits0, bits1 = bits0 << (entry0 & in_entry), bits1 << (entry1 & in_entry)
                bits2, bits3 = bits2 << (entry2 & in_entry), bits3 << (entry3 & in_entry)
                at0, at1 = at0 + (entry0 & in_entry), at1 + (entry1 & in_entry)
                at2, at3 = at2 + (entry2 & in_entry), at3 + (entry3 & in_entry)
                seen |= entry0 | entry1 | entry2 | entry3
            following = step + three
            if seen & beyond_window:
                code = aligned, order, lengths, codebook, values
                at0 = one_by_one(words, before0, place0 + step, place0 + following, *code)
                at1 = one_by_one(words, before1, place1 + step, place1 + following, *code)
                at2 = one_by_one(words, before2, place2 + step, place2 + following, *code)
                at3 = one_by_one(words, before3, place3 + step, place3 + following, *code)
            step = following
        position[0], position[1], position[2], position[3] = at0, at1, at2, at3
        for run in range(4):
            code = aligned, order, lengths, codebook, values
            if one_by_one(words, position[run], first[run] + step, beyond[run], *code) != target[run]:
                return False
        return True

    return read


@cache
def _pairs_kernel() -> Callable[..., bool]:
    import numba

    four_runs, one_by_one = _four_runs(), _one_by_one()
    one, five, six, high, top = (np.uint64(n) for n in (1, 5, 6, 32, 64 - TABLE_BITS))
    in_word, in_entry = np.uint64(31), np.uint64(63)

    @numba.njit(nogil=True)
    def read(words, ends, counts, windows, steps, aligned, order, lengths, codebook, values):
        first, beyond, position, target = four_runs(ends, counts, len(values))
        last = np.uint64(len(words) - 2)
        place0, place1, place2, place3 = first[0], first[1], first[2], first[3]
        beyond0, beyond1, beyond2, beyond3 = beyond[0], beyond[1], beyond[2], beyond[3]
        at0, at1, at2, at3 = position[0], position[1], position[2], position[3]
        # Three windows of each run hold six values at most.
        while (
            place0 + six <= beyond0 and place1 + six <= beyond1 and place2 + six <= beyond2 and place3 + six <= beyond3
        ):
            index0, index1 = min(at0 >> five, last), min(at1 >> five, last)
            index2, index3 = min(at2 >> five, last), min(at3 >> five, last)
            bits0 = ((np.uint64(words[index0]) << high) | np.uint64(words[index0 + one])) << (at0 & in_word)
            bits1 = ((np.uint64(words[index1]) << high) | np.uint64(words[index1 + one])) << (at1 & in_word)
            bits2 = ((np.uint64(words[index2]) << high) | np.uint64(words[index2 + one])) << (at2 & in_word)
            bits3 = ((np.uint64(words[index3]) << high) | np.uint64(words[index3 + one])) << (at3 & in_word)
            short = True
            for _ in range(3):
                window0, window1, window2, window3 = bits0 >> top, bits1 >> top, bits2 >> top, bits3 >> top
                pair0, pair1, pair2, pair3 = windows[window0], windows[window1], windows[window2], windows[window3]
                # A second value that is none is written over by the next one.
                values[place0], values[place0 + one] = np.uint32(pair0), np.uint32(pair0 >> high)
                values[place1], values[place1 + one] = np.uint32(pair1), np.uint32(pair1 >> high)
                values[place2], values[place2 + one] = np.uint32(pair2), np.uint32(pair2 >> high)
                values[place3], values[place3 + one] = np.uint32(pair3), np.uint32(pair3 >> high)
                step0, step1 = np.uint64(steps[window0]), np.uint64(steps[window1])
                step2, step3 = np.uint64(steps[window2]), np.uint64(steps[window3])
                bits0, bits1 = bits0 << (step0 & in_entry), bits1 << (step1 & in_entry)
                bits2, bits3 = bits2 << (step2 & in_entry), bits3 << (step3 & in_entry)
                at0, at1 = at0 + (step0 & in_entry), at1 + (step1 & in_entry)
                at2, at3 = at2 + (step2 & in_entry), at3 + (step3 & in_entry)
                place0, place1 = place0 + (step0 >> six), place1 + (step1 >> six)
                place2, place3 = place2 + (step2 >> six), place3 + (step3 >> six)
                short = short and step0 != 0 and step1 != 0 and step2 != 0 and step3 != 0
            if not short:  # a run that met a longer codeword stays before it: one codeword, whatever it is, for each
                code = aligned, order, lengths, codebook, values
                at0, place0 = (
                    one_by_one(words, at0, place0, min(place0 + one, beyond0), *code),
                    min(place0 + one, beyond0),
                )
                at1, place1 = (
                    one_by_one(words, at1, place1, min(place1 + one, beyond1), *code),
                    min(place1 + one, beyond1),
                )
                at2, place2 = (
                    one_by_one(words, at2, place2, min(place2 + one, beyond2), *code),
                    min(place2 + one, beyond2),
                )
                at3, place3 = (
                    one_by_one(words, at3, place3, min(place3 + one, beyond3), *code),
                    min(place3 + one, beyond3),
                )
        position[0], position[1], position[2], position[3] = at0, at1, at2, at3
        first[0], first[1], first[2], first[3] = place0, place1, place2, place3
        for run in range(4):
            code = aligned, order, lengths, codebook, values
            if one_by_one(words, position[run], first[run], beyond[run], *code) != target[run]:
                return False
        return True

    return read


@cache
def _multiply_kernel() -> Callable[..., None]:
    import numba

    one = np.uint64(1)

    @numba.njit(nogil=True)
    def multiply(counts, rows, values, x, out):
        number = np.uint64(0)
        for column in range(len(counts)):
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

    return multiply
