"""`ans`: interleaved rANS with static frequencies, in blocks of columns. Decoded in arrays of one element per lane."""

from __future__ import annotations

import numpy as np

from .bits import Bits, stream_bytes, unsigned
from .faults import PwtFault, require
from .matrix import Matrix

_LOWEST = 1 << 16
_LARGEST_PRECISION = 15
_MOST_LANES = 4096
_FEW_LANES = 24  # below this, numbers one by one are faster than arrays of them
_DIRECT, _RUNS = 0, 1
_CHUNK = 1 << 18  # survivors placed at a time, for each of which some 60 bytes are held

# A distance below 16 is its own token; above, eight tokens share an octave and the rest follows as extra bits.
_TOKENS = 16 + 8 * 28
_EXTRA_BITS = np.array([0 if token < 16 else (token - 16) // 8 + 1 for token in range(_TOKENS)], np.int64)
_DISTANCES = np.array([token if token < 16 else (8 + token % 8) << ((token - 16) // 8 + 1) for token in range(_TOKENS)])


class _Reader:
    """Bytes and numbers in sequence; the end of the body is an error."""

    def __init__(self, body: memoryview) -> None:
        self.body, self.at = body, 0

    def bytes(self, count: int) -> bytes:
        require(self.at + count <= len(self.body), PwtFault.bad_extent, "ans", "it ends within its parameters")
        self.at += count
        return bytes(self.body[self.at - count : self.at])

    def number(self) -> int:
        """Seven bits a byte, the lowest first, at most six bytes."""
        value = 0
        for shift in range(0, 42, 7):
            byte = self.bytes(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        require(False, PwtFault.bad_model, "ans", "a number of more than six bytes")
        return value

    def frequencies(self, sizes: list[int], precisions: list[int], orders: list[int]) -> list[np.ndarray]:
        """Tables of exponential Golomb codes, one after the other, filled up to a byte with zeros."""
        text = "".join(f"{byte:08b}" for byte in self.body[self.at : self.at + 4 * sum(sizes)])
        position, tables = 0, []
        for size, precision, order in zip(sizes, precisions, orders, strict=True):
            table = np.zeros(size, np.int64)
            for symbol in range(size):
                one = text.find("1", position)
                end = 2 * one - position + order + 1
                fits = 0 <= one <= position + precision and end <= len(text)
                require(fits, PwtFault.bad_model, "ans", "the frequencies are cut short or too large")
                table[symbol] = int(text[one:end], 2) - (1 << order)
                position = end
            require(table.sum() == 1 << precision, PwtFault.bad_model, "ans", "frequencies of a wrong sum")
            tables.append(table)
        filled = "1" not in text[position : -(-position // 8) * 8]
        require(filled, PwtFault.bad_model, "ans", "the bits behind the frequencies are not zero")
        self.at += -(-position // 8)
        return tables


class _Model:
    """A table by slot: symbol, frequency, and the slot's distance from the symbol's first."""

    def __init__(self, frequencies: np.ndarray, precision: int) -> None:
        self.precision = precision
        self.symbols = np.repeat(np.arange(len(frequencies)), frequencies).astype(np.uint16)
        self.frequencies = frequencies[self.symbols]
        self.offsets = np.arange(1 << precision) - (np.cumsum(frequencies) - frequencies)[self.symbols]


class _Lanes:
    """The states of one block and the words that they share."""

    def __init__(self, block: memoryview, lanes: int) -> None:
        require(len(block) >= 4 * lanes, PwtFault.bad_extent, "ans", "a block ends within its states")
        self.state = np.frombuffer(block[: 4 * lanes], "<u4").astype(np.int64)
        require((self.state >= _LOWEST).all(), PwtFault.bad_stream, "ans", "a lane begins below its lowest state")
        self.words = np.frombuffer(block[4 * lanes : 4 * lanes + (len(block) - 4 * lanes) // 2 * 2], "<u2")
        self.taken = 0

    def decode(self, count: int, model: _Model) -> np.ndarray:
        slots = np.empty(count, np.uint16)
        if len(self.state) < _FEW_LANES:
            self._by_numbers(slots, model)
        else:
            self._by_arrays(slots, model)
        return model.symbols[slots]

    def end(self) -> int:
        """Bytes used."""
        require((self.state == _LOWEST).all(), PwtFault.bad_stream, "ans", "a lane does not end in its lowest state")
        return 4 * len(self.state) + 2 * self.taken

    def _by_arrays(self, slots: np.ndarray, model: _Model) -> None:
        lanes, mask = len(self.state), (1 << model.precision) - 1
        for first in range(0, len(slots), lanes):
            state = self.state[: len(slots) - first]
            slot = state & mask
            slots[first : first + lanes] = slot
            state >>= model.precision
            state *= model.frequencies.take(slot)
            state += model.offsets.take(slot)
            low = np.flatnonzero(state < _LOWEST)
            if len(low):
                words = self.words[self.taken : self.taken + len(low)]
                require(len(words) == len(low), PwtFault.bad_stream, "ans", "the words end before the symbols do")
                state[low] = state[low] << 16 | words
                self.taken += len(low)

    def _by_numbers(self, slots: np.ndarray, model: _Model) -> None:
        frequencies, offsets, states = model.frequencies.tolist(), model.offsets.tolist(), self.state.tolist()
        lanes, mask, taken = len(states), (1 << model.precision) - 1, self.taken
        for number in range(len(slots)):
            state = states[number % lanes]
            slot = state & mask
            slots[number] = slot
            state = frequencies[slot] * (state >> model.precision) + offsets[slot]
            if state < _LOWEST:
                require(taken < len(self.words), PwtFault.bad_stream, "ans", "the words end before the symbols do")
                state = state << 16 | int(self.words[taken])
                taken += 1
            states[number % lanes] = state
        self.state[:], self.taken = states, taken


class AnsColumns:
    """Blocks of columns; a range of columns decodes the blocks that it meets."""

    def __init__(self, body: memoryview, matrix: Matrix, codebook: np.ndarray) -> None:
        self._matrix, self._codebook, self._body = matrix, codebook, body
        reader = _Reader(body)
        mode, lanes_log2 = reader.bytes(2)
        known = mode in (_DIRECT, _RUNS) and 1 << lanes_log2 <= _MOST_LANES
        require(known, PwtFault.bad_model, "ans", f"mode {mode} with 2^{lanes_log2} lanes")
        self._runs, self._lanes = mode == _RUNS, 1 << lanes_log2
        parameters = reader.bytes(4 if self._runs else 2)
        precisions, orders = list(parameters[::2]), list(parameters[1::2])
        for precision, order in zip(precisions, orders, strict=True):
            fits = 1 <= precision <= _LARGEST_PRECISION and order < precision
            require(fits, PwtFault.bad_model, "ans", f"precision {precision}, order {order}")
        self._background, sizes = 0, [matrix.levels]
        if self._runs:
            self._background, tokens = reader.number(), reader.number()
            fits = self._background < matrix.levels and 1 <= tokens <= _TOKENS
            require(fits, PwtFault.bad_model, "ans", f"background {self._background}, {tokens} tokens")
            sizes = [tokens, matrix.levels]
        self._block_columns = reader.number()
        require(self._block_columns, PwtFault.bad_model, "ans", "blocks of no columns")
        tables = reader.frequencies(sizes, precisions, orders)
        self._models = [_Model(table, precision) for table, precision in zip(tables, precisions, strict=True)]
        self._blocks = self._directory(reader)

    def values(self, start: int, stop: int) -> np.ndarray:
        rows = self._matrix.rows
        found = np.empty((stop - start) * rows, np.float32)
        if len(found) == 0:
            return found
        for number in range(start // self._block_columns, -(-stop // self._block_columns)):
            first = number * self._block_columns
            last = min(first + self._block_columns, self._matrix.columns)
            low, high = max(start, first), min(stop, last)
            block = self._block(number, (last - first) * rows)[(low - first) * rows : (high - first) * rows]
            np.take(self._codebook, block, out=found[(low - start) * rows : (high - start) * rows], mode="clip")
        return found

    def _directory(self, reader: _Reader) -> list[tuple[memoryview, int]]:
        """Each block's bytes and its survivors."""
        sizes = []
        for first in range(0, self._matrix.columns if self._matrix.entries else 0, self._block_columns):
            size, survivors = reader.number(), reader.number() if self._runs else 0
            entries = min(self._block_columns, self._matrix.columns - first) * self._matrix.rows
            require(survivors <= entries, PwtFault.bad_index, "ans", f"{survivors} survivors in a block")
            sizes.append((size, survivors))
        at, blocks = reader.at, []
        for size, survivors in sizes:
            blocks.append((self._body[at : at + size], survivors))
            at += size
        require(at == len(self._body), PwtFault.bad_extent, "ans", f"{len(self._body)} bytes, where {at} are declared")
        return blocks

    def _block(self, number: int, entries: int) -> np.ndarray:
        """Indices of a block's entries."""
        block, survivors = self._blocks[number]
        lanes = _Lanes(block, self._lanes)
        if not self._runs:
            flat = lanes.decode(entries, self._models[0])
            require(lanes.end() == len(block), PwtFault.bad_stream, "ans", "a block has bytes that nothing uses")
            return flat
        tokens, values = lanes.decode(survivors, self._models[0]), lanes.decode(survivors, self._models[1])
        used, chunks = lanes.end(), [slice(first, first + _CHUNK) for first in range(0, survivors, _CHUNK)]
        extra_bits = sum(int(_EXTRA_BITS[tokens[chunk]].sum()) for chunk in chunks)
        whole = len(block) == used + stream_bytes(extra_bits)
        require(whole, PwtFault.bad_stream, "ans", "a block is not as long as its parts")
        flat = np.full(entries, self._background, unsigned(max(0, self._matrix.levels - 1)))
        stream, position, place = Bits(block[used:]), 0, -1
        for chunk in chunks:
            widths = _EXTRA_BITS[tokens[chunk]]
            ends = position + np.cumsum(widths)
            distances = _DISTANCES[tokens[chunk]] + stream.at(ends - widths, widths).astype(np.int64)
            places = place + np.cumsum(distances + 1)
            inside = places[-1] < entries and distances.max() < entries
            require(inside, PwtFault.bad_index, "ans", "a survivor lies beyond its block")
            flat[places] = values[chunk]
            position, place = int(ends[-1]), int(places[-1])
        return flat
