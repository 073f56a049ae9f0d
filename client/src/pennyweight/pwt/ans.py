"""`ans`: interleaved rANS with static frequencies, in blocks of columns. Decoded in arrays of one element per lane.

Three modes: every entry, survivors with the distances between them, or every entry with a table for the classes of its
channels.
"""

from __future__ import annotations

import numpy as np

from .bits import Bits, stream_bytes, unsigned
from .faults import PwtFault, require
from .matrix import Matrix

_LOWEST = 1 << 16
_LARGEST_PRECISION = 15
_MOST_LANES = 4096
_FEW_LANES = 24  # below this, numbers one by one are faster than arrays of them
_DIRECT, _RUNS, _CONTEXTS = 0, 1, 2
_MOST_CONTEXTS, _LARGEST_CONTEXT_PRECISION = 16, 13
_LARGEST_STRIDE_LOG2 = 8
_FREE_ROUNDS, _ROUNDS_A_BYTE = 1 << 17, 128  # of all lanes: what a reader decodes for so many bytes
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

    def numbers(self, sizes: list[int], orders: list[int]) -> list[np.ndarray]:
        """Tables of exponential Golomb codes, one after the other, filled up to a byte with zeros."""
        text = "".join(f"{byte:08b}" for byte in self.body[self.at : self.at + 5 * sum(sizes)])
        position, tables = 0, []
        for size, order in zip(sizes, orders, strict=True):
            table = np.zeros(size, np.int64)
            for symbol in range(size):
                one = text.find("1", position)
                end = 2 * one - position + order + 1
                fits = 0 <= one <= position + 16 and end <= len(text)
                require(fits, PwtFault.bad_model, "ans", "the frequencies are cut short or too large")
                table[symbol] = int(text[one:end], 2) - (1 << order)
                position = end
            tables.append(table)
        filled = "1" not in text[position : -(-position // 8) * 8]
        require(filled, PwtFault.bad_model, "ans", "the bits behind the frequencies are not zero")
        self.at += -(-position // 8)
        return tables


class _Model:
    """Tables [contexts, symbols] by slot: symbol, frequency, and the slot's distance from the symbol's first."""

    def __init__(self, frequencies: np.ndarray, precision: int) -> None:
        fits = (frequencies.sum(axis=1) == 1 << precision).all()
        require(fits, PwtFault.bad_model, "ans", f"frequencies do not add up to 2^{precision}")
        contexts, symbols = frequencies.shape
        self.precision, flat = precision, frequencies.reshape(-1)
        self.symbols = np.repeat(np.tile(np.arange(symbols), contexts), flat).astype(np.uint16)
        self.frequencies = np.repeat(flat, flat)
        begins = (np.cumsum(frequencies, axis=1) - frequencies).reshape(-1)
        self.offsets = np.tile(np.arange(1 << precision), contexts) - np.repeat(begins, flat)
        # A single symbol takes no bits and changes no state.
        self.free = contexts == 1 and int(flat.max()) == 1 << precision


class _Contexts:
    """The table of each entry: the classes of its column and of its input channel, added, less an offset."""

    def __init__(self, classes: bytes, matrix: Matrix, offset: int, count: int) -> None:
        pairs = np.frombuffer(classes, np.uint8)
        numbers = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1).astype(np.int16)
        used = matrix.columns + matrix.channels
        require(not numbers[used:].any(), PwtFault.bad_model, "ans", "the half byte behind the classes is not zero")
        self._columns = numbers[: matrix.columns]
        self._rows = np.repeat(numbers[matrix.columns : used] - offset, matrix.rows // max(1, matrix.channels))
        self._last = count - 1

    def of_columns(self, start: int, stop: int) -> np.ndarray:
        return np.clip(self._columns[start:stop, None] + self._rows, 0, self._last).astype(np.uint8).reshape(-1)


def _between(knots: np.ndarray, stride_log2: int, symbols: int, precision: int) -> np.ndarray:
    """Frequencies from knots [contexts, knots] at every 2^stride_log2-th symbol: lines between them, and one more for
    each symbol that has any; what is left goes to the most frequent. A context of nothing has the symbol 0."""
    stride, place = 1 << stride_log2, np.arange(symbols)
    index, rest = place // stride, place % stride
    ends = np.concatenate([knots, np.zeros((len(knots), 1), np.int64)], axis=1)
    weights = ends[:, index] * (stride - rest) + ends[:, index + 1] * rest
    weights[weights.sum(axis=1) == 0, 0] = 1
    slots = (1 << precision) - (weights > 0).sum(axis=1, keepdims=True)
    require((slots >= 0).all(), PwtFault.bad_model, "ans", f"more symbols than 2^{precision} slots")
    found = np.where(weights > 0, 1 + weights * slots // weights.sum(axis=1, keepdims=True), 0)
    found[np.arange(len(found)), found.argmax(axis=1)] += (1 << precision) - found.sum(axis=1)
    return found


class _Lanes:
    """The states of one block and the words that they share."""

    def __init__(self, block: memoryview, lanes: int) -> None:
        require(len(block) >= 4 * lanes, PwtFault.bad_extent, "ans", "a block ends within its states")
        self.state = np.frombuffer(block[: 4 * lanes], "<u4").astype(np.int64)
        require((self.state >= _LOWEST).all(), PwtFault.bad_stream, "ans", "a lane begins below its lowest state")
        self.words = np.frombuffer(block[4 * lanes : 4 * lanes + (len(block) - 4 * lanes) // 2 * 2], "<u2")
        self.taken = 0

    def decode(self, count: int, model: _Model, contexts: np.ndarray | None = None) -> np.ndarray:
        if model.free:
            return np.full(count, model.symbols[0])
        # Each entry's first slot until it is decoded, then its own.
        slots = np.zeros(count, np.uint32)
        if contexts is not None:
            np.left_shift(contexts, model.precision, out=slots, dtype=np.uint32)
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
            slot = (state & mask) + slots[first : first + lanes]
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
            slot = (state & mask) + int(slots[number])
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
        known = mode in (_DIRECT, _RUNS, _CONTEXTS) and 1 << lanes_log2 <= _MOST_LANES
        require(known, PwtFault.bad_model, "ans", f"mode {mode} with 2^{lanes_log2} lanes")
        self._runs, self._lanes = mode == _RUNS, 1 << lanes_log2
        self._background, self._contexts = 0, None
        self._models = self._with_contexts(reader) if mode == _CONTEXTS else self._plain(reader)
        self._blocks = self._directory(reader)
        self._check_rounds()

    def _plain(self, reader: _Reader) -> list[_Model]:
        parameters = reader.bytes(4 if self._runs else 2)
        precisions, orders = list(parameters[::2]), list(parameters[1::2])
        for precision, order in zip(precisions, orders, strict=True):
            _check_precision(precision, order)
        levels = self._matrix.levels
        sizes = [levels]
        if self._runs:
            self._background, tokens = reader.number(), reader.number()
            fits = self._background < levels and 1 <= tokens <= _TOKENS
            require(fits, PwtFault.bad_model, "ans", f"background {self._background}, {tokens} tokens")
            sizes = [tokens, levels]
        self._read_block_columns(reader)
        tables = reader.numbers(sizes, orders)
        return [_Model(table[None], precision) for table, precision in zip(tables, precisions, strict=True)]

    def _with_contexts(self, reader: _Reader) -> list[_Model]:
        matrix = self._matrix
        precision, order, stride_log2, count = reader.bytes(4)
        _check_precision(precision, order)
        known = stride_log2 <= _LARGEST_STRIDE_LOG2 and 1 <= count <= _MOST_CONTEXTS
        known = known and precision <= _LARGEST_CONTEXT_PRECISION
        require(known, PwtFault.bad_model, "ans", f"stride {stride_log2}, {count} contexts")
        offset = reader.number()
        require(offset <= 2 * _MOST_CONTEXTS, PwtFault.bad_model, "ans", f"contexts begin at {offset}")
        self._read_block_columns(reader)
        self._contexts = _Contexts(reader.bytes((matrix.columns + matrix.channels + 1) // 2), matrix, offset, count)
        knots = -(-(matrix.levels - 1) // (1 << stride_log2)) + 1
        (values,) = reader.numbers([count * knots], [order])
        return [_Model(_between(values.reshape(count, knots), stride_log2, matrix.levels, precision), precision)]

    def _read_block_columns(self, reader: _Reader) -> None:
        self._block_columns = reader.number()
        require(self._block_columns, PwtFault.bad_model, "ans", "blocks of no columns")

    def _check_rounds(self) -> None:
        """Symbols that take hardly any bits could keep a reader busy for hours."""
        busy, rounds = sum(not model.free for model in self._models), 0
        for number, (_, survivors) in enumerate(self._blocks):
            columns = min(self._block_columns, self._matrix.columns - number * self._block_columns)
            symbols = survivors if self._runs else columns * self._matrix.rows
            rounds += busy * -(-symbols // self._lanes)
        few = rounds <= _FREE_ROUNDS + _ROUNDS_A_BYTE * len(self._body)
        require(few, PwtFault.bad_model, "ans", f"{len(self._body)} bytes that take {rounds} rounds to decode")

    def values(self, start: int, stop: int) -> np.ndarray:
        rows = self._matrix.rows
        found = np.empty((stop - start) * rows, np.float32)
        if len(found) == 0:
            return found
        for number in range(start // self._block_columns, -(-stop // self._block_columns)):
            first = number * self._block_columns
            last = min(first + self._block_columns, self._matrix.columns)
            low, high = max(start, first), min(stop, last)
            block = self._block(number, first, last)[(low - first) * rows : (high - first) * rows]
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

    def _block(self, number: int, first: int, last: int) -> np.ndarray:
        """Indices of the entries of a block, which has these columns."""
        block, survivors = self._blocks[number]
        entries = (last - first) * self._matrix.rows
        lanes = _Lanes(block, self._lanes)
        if not self._runs:
            contexts = None if self._contexts is None else self._contexts.of_columns(first, last)
            flat = lanes.decode(entries, self._models[0], contexts)
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


def _check_precision(precision: int, order: int) -> None:
    fits = 1 <= precision <= _LARGEST_PRECISION and order < precision
    require(fits, PwtFault.bad_model, "ans", f"precision {precision}, order {order}")
