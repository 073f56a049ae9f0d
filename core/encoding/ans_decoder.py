"""Reading `ans`: parameters checked before anything of their size is made, and access to any range of columns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from core.encoding import bits, fast, gaps, tables
from core.encoding.contexts import MAX_CONTEXTS, Contexts, class_bytes, read_classes
from core.encoding.contexts import MAX_PRECISION as CONTEXT_PRECISION
from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import Layout, index_type
from core.encoding.rans import MAX_LANES, MAX_PRECISION, Model, Stream

DIRECT, RUNS, CONTEXTS = 0, 1, 2
# Symbols that take hardly any bits could keep a reader busy for hours; so rounds of all lanes are bounded by the bytes.
FREE_ROUNDS, ROUNDS_A_BYTE = 1 << 17, 128
_PLACED_AT_ONCE = 1 << 18  # survivors, for each of which some 60 bytes are held while they are placed


class Decoder:
    """Random access to the columns of one body: the blocks that they meet are decoded."""

    def __init__(self, body: memoryview, layout: Layout) -> None:
        self._layout, self._body = layout, body
        mode, lanes_log2 = self._bytes(0, 2)
        if mode not in (DIRECT, RUNS, CONTEXTS) or 1 << lanes_log2 > MAX_LANES:
            raise PwtError(PwtFault.bad_model, "ans", f"mode {mode} with 2^{lanes_log2} lanes")
        self._runs, self._lanes = mode == RUNS, 1 << lanes_log2
        self._background, self._contexts = 0, None
        at = self._read_contexts() if mode == CONTEXTS else self._read_plain()
        self.blocks: list[tuple[int, int, int]] = []  # where it begins and ends, and its survivors
        self._read_directory(at)
        self._check_rounds()

    def columns(self, start: int, stop: int, threads: int = 1) -> np.ndarray:
        """Indices of the columns [start, stop): [columns, rows]. threads: that share the blocks."""
        rows, kind = self._layout.rows, index_type(self._layout.levels)
        found = np.empty((stop - start, rows), kind)
        if found.size == 0:
            return found

        def decode(number: int) -> None:
            first = number * self._block_columns
            last = min(first + self._block_columns, self._layout.columns)
            block = self._block(number, first, last, whole).reshape(last - first, rows)
            low, high = max(start, first), min(stop, last)
            found[low - start : high - start] = block[low - first : high - first]

        numbers = range(start // self._block_columns, -(-stop // self._block_columns))
        whole = self._symbols(numbers)
        # The many small steps of numpy hold the interpreter's lock, so that threads would wait for each other.
        if threads == 1 or len(numbers) == 1 or not fast.worthwhile(whole):
            for number in numbers:
                decode(number)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(decode, numbers))
        return found

    def _symbols(self, numbers: range) -> int:
        """How many symbols these blocks hold: a distance and a value of each survivor, or one of each entry."""
        if self._runs:
            return 2 * sum(self.blocks[number][2] for number in numbers)
        return len(numbers) * self._block_columns * self._layout.rows

    def _block(self, number: int, first: int, last: int, whole: int) -> np.ndarray:
        begin, end, survivors = self.blocks[number]
        content, entries = self._body[begin:end], (last - first) * self._layout.rows
        stream = Stream(content, self._lanes, whole)
        if not self._runs:
            contexts = None if self._contexts is None else self._contexts.of_columns(self._layout, first, last)
            flat = stream.symbols(entries, self._models[0], contexts)
            self._ends(stream.finish(), len(content))
            return flat
        tokens = stream.symbols(survivors, self._models[0])
        values = stream.symbols(survivors, self._models[1])
        width_of, smallest = gaps.widths_of(np.arange(gaps.TOKENS)), gaps.smallest_gaps(np.arange(gaps.TOKENS))
        chunks = [slice(first, first + _PLACED_AT_ONCE) for first in range(0, survivors, _PLACED_AT_ONCE)]
        used = stream.finish()
        extra_bits = sum(int(np.bincount(tokens[chunk], minlength=gaps.TOKENS) @ width_of) for chunk in chunks)
        self._ends(used + bits.stream_bytes(extra_bits), len(content))
        flat = np.full(entries, self._background, index_type(self._layout.levels))
        words = bits.words_of(content[used:])
        if fast.worthwhile(whole):
            if not fast.place(tokens, values, words, width_of, smallest, flat):
                raise PwtError(PwtFault.bad_index, "ans", "a survivor lies beyond its block")
            return flat
        position, place = 0, -1
        for chunk in chunks:
            widths = width_of[tokens[chunk]]
            distances = smallest[tokens[chunk]] + bits.unpack_varying(words, widths, position).astype(np.int64)
            places = place + np.cumsum(distances + 1)
            if int(places[-1]) >= entries or int(distances.max()) >= entries:
                raise PwtError(PwtFault.bad_index, "ans", "a survivor lies beyond its block")
            flat[places] = values[chunk]
            position, place = position + int(widths.sum()), int(places[-1])
        return flat

    def _ends(self, used: int, size: int) -> None:
        if used != size:
            raise PwtError(PwtFault.bad_stream, "ans", f"a block of {size} bytes, of which {used} are used")

    def _read_plain(self) -> int:
        """Models of the modes without contexts; where they end."""
        parameters = self._bytes(2, 4 if self._runs else 2)
        at = 2 + len(parameters)
        precisions, orders = list(parameters[::2]), list(parameters[1::2])
        for precision, order in zip(precisions, orders, strict=True):
            if not 1 <= precision <= MAX_PRECISION or order >= precision:
                raise PwtError(PwtFault.bad_model, "ans", f"precision {precision}, order {order}")
        sizes = [self._layout.levels]
        if self._runs:
            self._background, at = self._varint(at)
            tokens, at = self._varint(at)
            if self._background >= self._layout.levels or not 1 <= tokens <= gaps.TOKENS:
                raise PwtError(PwtFault.bad_model, "ans", f"background {self._background}, {tokens} tokens")
            sizes = [tokens, self._layout.levels]
        at = self._read_block_columns(at)
        found, at = tables.read(self._body, at, sizes, orders)
        for frequencies, precision in zip(found, precisions, strict=True):
            if int(frequencies.sum()) != 1 << precision:
                raise PwtError(PwtFault.bad_model, "ans", f"frequencies do not add up to 2^{precision}")
        self._models = [Model(table, precision) for table, precision in zip(found, precisions, strict=True)]
        return at

    def _read_contexts(self) -> int:
        """Classes and model of the mode with contexts; where they end."""
        layout = self._layout
        precision, order, stride_log2, count = self._bytes(2, 4)
        known = 1 <= precision <= CONTEXT_PRECISION and order < precision and stride_log2 <= tables.MAX_STRIDE_LOG2
        if not known or not 1 <= count <= MAX_CONTEXTS:
            raise PwtError(
                PwtFault.bad_model,
                "ans",
                f"precision {precision}, order {order}, stride {stride_log2}, {count} contexts",
            )
        offset, at = self._varint(6)
        if offset > 2 * MAX_CONTEXTS:
            raise PwtError(PwtFault.bad_model, "ans", f"contexts begin at {offset}")
        at = self._read_block_columns(at)
        columns, rows = read_classes(self._bytes(at, class_bytes(layout)), layout)
        self._contexts = Contexts(columns, rows, offset, count)
        at += class_bytes(layout)
        knots = tables.knots_of(layout.levels, stride_log2)
        (values,), at = tables.read(self._body, at, [count * knots], [order])
        frequencies = tables.between(values.reshape(count, knots), stride_log2, layout.levels, precision)
        self._models = [Model(frequencies.reshape(-1), precision, count)]
        return at

    def _read_block_columns(self, at: int) -> int:
        self._block_columns, at = self._varint(at)
        if self._block_columns < 1:
            raise PwtError(PwtFault.bad_model, "ans", "blocks of no columns")
        return at

    def _check_rounds(self) -> None:
        """Rounds of all lanes, in which symbols that take no bits at all are not counted."""
        rounds, busy = 0, sum(not model.free for model in self._models)
        for number, (_, _, survivors) in enumerate(self.blocks):
            columns = min(self._block_columns, self._layout.columns - number * self._block_columns)
            symbols = survivors if self._runs else columns * self._layout.rows
            rounds += busy * -(-symbols // self._lanes)
        if rounds > FREE_ROUNDS + ROUNDS_A_BYTE * len(self._body):
            raise PwtError(PwtFault.bad_model, "ans", f"{len(self._body)} bytes that take {rounds} rounds to decode")

    def _read_directory(self, at: int) -> None:
        count = -(-self._layout.columns // self._block_columns) if self._layout.entries else 0
        sizes = []
        for number in range(count):
            size, at = self._varint(at)
            survivors, at = self._varint(at) if self._runs else (0, at)
            columns = min(self._block_columns, self._layout.columns - number * self._block_columns)
            if survivors > columns * self._layout.rows:
                raise PwtError(PwtFault.bad_index, "ans", f"{survivors} survivors in a block")
            sizes.append((size, survivors))
        for size, survivors in sizes:
            self.blocks.append((at, at + size, survivors))
            at += size
        if at != len(self._body):
            raise PwtError(PwtFault.bad_extent, "ans", f"{len(self._body)} bytes, where {at} are declared")

    def _bytes(self, at: int, count: int) -> bytes:
        if at + count > len(self._body):
            raise PwtError(PwtFault.bad_extent, "ans", "it ends within its parameters")
        return bytes(self._body[at : at + count])

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 42, 7):
            byte = self._bytes(at, 1)[0]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise PwtError(PwtFault.bad_model, "ans", "a number of more than six bytes")
