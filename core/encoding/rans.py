"""Interleaved range asymmetric numeral systems (rANS) with static frequencies: the arithmetic, vectorised over lanes.

Source: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); the interleaving of lanes over one stream of words follows
F. Giesen, "Interleaved entropy coders" (arXiv 1402.3392).

Symbol i of a segment belongs to lane i mod N. A lane's state x stays in [2^16, 2^32); a symbol s of frequency f and
cumulated frequency c, of 2^R in all, is decoded by

    slot = x mod 2^R, s = the symbol whose [c, c+f) holds slot, x ← f·(x >> R) + slot − c

and where x falls below 2^16 it takes the next 16-bit word: x ← x·2^16 + word. Lanes take words in the order of their
numbers. The encoder runs backwards, begins with every state at 2^16, and writes the words in the decoder's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from core.encoding import fast
from core.encoding.errors import PwtError, PwtFault

LOWEST_STATE = 1 << 16
MAX_PRECISION = 15
MAX_LANES = 4096
_FEW_LANES = 24  # below this, numbers one by one are faster than arrays of them


@dataclass(frozen=True)
class Model:
    """Frequencies of the symbols 0 … S−1, int64 [S], of sum 2**precision; with contexts one such table after another,
    int64 [contexts·S]."""

    frequencies: np.ndarray
    precision: int
    contexts: int = 1

    @property
    def free(self) -> bool:
        """Whether a symbol takes no bits, as there is only one."""
        return self.contexts == 1 and int(self.frequencies.max()) == 1 << self.precision

    @cached_property
    def cumulated(self) -> np.ndarray:
        tables = self.frequencies.reshape(self.contexts, -1)
        return (np.cumsum(tables, axis=1) - tables).reshape(-1)

    @cached_property
    def symbol_of_slot(self) -> np.ndarray:
        symbols = np.tile(np.arange(len(self.frequencies) // self.contexts), self.contexts)
        return np.repeat(symbols, self.frequencies).astype(np.uint16)

    @cached_property
    def frequency_of_slot(self) -> np.ndarray:
        return np.repeat(self.frequencies, self.frequencies)

    @cached_property
    def offset_of_slot(self) -> np.ndarray:
        """slot − c."""
        slots = np.tile(np.arange(1 << self.precision), self.contexts)
        return slots - np.repeat(self.cumulated, self.frequencies)


def fitted(counts: np.ndarray, precision: int) -> Model:
    """Frequencies near `counts` (at least one symbol of a count above 0), none of them 0 where the symbol occurs.

    Rounded shares, and then the differences to 2**precision given or taken where they cost the fewest bits.
    """
    total, size = int(counts.sum()), 1 << precision
    used = counts > 0
    exact = counts * (size / total)
    frequencies = np.where(used, np.maximum(1, np.round(exact)), 0).astype(np.int64)
    while (gap := size - int(frequencies.sum())) != 0:
        step = 1 if gap > 0 else -1
        movable = used if step > 0 else frequencies > 1
        cost = np.full(len(counts), np.inf)
        cost[movable] = counts[movable] * np.log(frequencies[movable] / (frequencies[movable] + step))
        chosen = np.argsort(cost, kind="stable")[: min(abs(gap), int(movable.sum()))]
        frequencies[chosen] += step
    return Model(frequencies, precision)


def cost_bits(counts: np.ndarray, model: Model) -> float:
    """Bits of symbols of these counts under a model."""
    used = counts > 0
    return float((counts[used] * (model.precision - np.log2(model.frequencies[used]))).sum())


def encode(segments: list[tuple[np.ndarray, Model]], lanes: int) -> bytes:
    """The final states (N little-endian uint32) and the 16-bit words of segments that follow one another.

    With contexts a symbol is context·S + symbol.
    """
    state = np.full(lanes, LOWEST_STATE, np.int64)
    emitted: list[np.ndarray] = []
    for symbols, model in reversed(segments):
        shift = 32 - model.precision
        for first in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
            symbol = symbols[first : first + lanes]
            active = state[: len(symbol)]
            frequency = model.frequencies[symbol]
            full = np.flatnonzero(active >= frequency << shift)
            emitted.append(active[full] & 0xFFFF)
            active[full] >>= 16
            quotient, rest = np.divmod(active, frequency)
            state[: len(symbol)] = (quotient << model.precision) + rest + model.cumulated[symbol]
    words = np.concatenate([*reversed(emitted), np.empty(0, np.int64)])
    return state.astype("<u4").tobytes() + words.astype("<u2").tobytes()


class Stream:
    """Decoding of what `encode` made, segment by segment; `finish` says whether it ended as it must.

    whole: the symbols of all streams that are decoded together, which say whether compiling is worth its time.
    """

    def __init__(self, content: memoryview, lanes: int, whole: int = 0) -> None:
        self._whole = whole
        if len(content) < 4 * lanes:
            raise PwtError(PwtFault.bad_extent, "ans", f"{len(content)} bytes cannot hold {lanes} states")
        self._state = np.frombuffer(content[: 4 * lanes], "<u4").astype(np.int64)
        rest = content[4 * lanes :]
        self._words = np.frombuffer(rest[: len(rest) // 2 * 2], "<u2")
        self._taken = 0
        if len(self._state) and int(self._state.min()) < LOWEST_STATE:
            raise PwtError(PwtFault.bad_stream, "ans", "a lane begins below its lowest state")

    def symbols(self, count: int, model: Model, contexts: np.ndarray | None = None) -> np.ndarray:
        """The next `count` symbols, uint16. contexts: uint8 [count], where the model has several."""
        if model.free:
            return np.full(count, model.frequencies.argmax(), np.uint16)
        found = np.empty(count, np.uint16)
        contexts = np.empty(0, np.uint8) if contexts is None else contexts
        if fast.worthwhile(max(count, self._whole)):
            self._taken = fast.rans_symbols(
                self._state,
                self._words,
                self._taken,
                model.symbol_of_slot,
                model.frequency_of_slot,
                model.offset_of_slot,
                model.precision,
                contexts,
                found,
            )
        elif len(self._state) < _FEW_LANES:
            self._decode_one_by_one(found, model, contexts)
        else:
            self._decode(found, model, contexts)
        if self._taken > len(self._words):
            raise PwtError(PwtFault.bad_stream, "ans", "the words end before the symbols do")
        return found

    def finish(self) -> int:
        """The bytes of states and words that were used."""
        if (self._state != LOWEST_STATE).any():
            raise PwtError(PwtFault.bad_stream, "ans", "a lane does not end in its lowest state")
        return 4 * len(self._state) + 2 * self._taken

    def _decode(self, found: np.ndarray, model: Model, contexts: np.ndarray) -> None:
        lanes, mask = len(self._state), (1 << model.precision) - 1
        slot, factor = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
        frequencies, offsets, symbols = model.frequency_of_slot, model.offset_of_slot, model.symbol_of_slot
        words, taken = self._words, self._taken
        for first in range(0, len(found), lanes):
            target = found[first : first + lanes]
            if len(target) < lanes:
                slot, factor = slot[: len(target)], factor[: len(target)]
            state = self._state[: len(target)]
            np.bitwise_and(state, mask, out=slot)
            if len(contexts):
                slot += contexts[first : first + lanes].astype(np.int64) << model.precision
            np.take(symbols, slot, out=target, mode="clip")
            np.right_shift(state, model.precision, out=state)
            np.take(frequencies, slot, out=factor, mode="clip")
            np.multiply(state, factor, out=state)
            np.take(offsets, slot, out=factor, mode="clip")
            np.add(state, factor, out=state)
            low = np.flatnonzero(state < LOWEST_STATE)
            if len(low):
                word = words[taken : taken + len(low)]
                taken += len(low)
                if len(word) < len(low):
                    break
                state[low] = (state[low] << 16) | word
        self._taken = taken

    def _decode_one_by_one(self, found: np.ndarray, model: Model, contexts: np.ndarray) -> None:
        frequencies, offsets = model.frequency_of_slot.tolist(), model.offset_of_slot.tolist()
        words, taken, states = self._words, self._taken, self._state.tolist()
        lanes, precision, mask = len(states), model.precision, (1 << model.precision) - 1
        slots = np.empty(len(found), np.int64)
        begins = (contexts.astype(np.int64) << precision).tolist() if len(contexts) else [0] * len(found)
        for number, begin in enumerate(begins):
            state = states[number % lanes]
            slots[number] = slot = begin + (state & mask)
            state = frequencies[slot] * (state >> precision) + offsets[slot]
            if state < LOWEST_STATE:
                taken += 1
                if taken > len(words):
                    break
                state = state << 16 | int(words[taken - 1])
            states[number % lanes] = state
        found[:] = model.symbol_of_slot.take(slots, mode="clip")
        self._state[:], self._taken = states, taken
