"""`ans`: static interleaved rANS per tensor, in blocks of columns that decode on their own (specified in docs/pwt.md).

Two models, of which the smaller is taken. *Direct* codes every entry as its index. *Runs* codes the survivors only: the
distance to each from the one before (`gaps`), and its index; the entries between them are the most frequent index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.encoding import bits, gaps
from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import Layout, flat_indices, index_type, layout_of
from core.encoding.quantized import QuantizedTensor
from core.encoding.rans import MAX_LANES, MAX_PRECISION, Model, Stream, cost_bits, encode, fitted

DIRECT, RUNS = 0, 1
_BLOCK_BYTES = 1 << 19  # of coded bytes: enough for a thousand lanes
_BLOCK_ENTRIES = 1 << 22  # of entries: what a decoder holds at a time
_LANE_BYTES = 3  # what a lane costs: two bytes of its first state, and about one of its last
_LANE_SHARE = 0.005  # of the coded bytes that lanes may cost
_SPARSE = 0.25  # below this share of survivors runs decode faster, so that a tie goes to them
_TIE = 1.002
_PLACED_AT_ONCE = 1 << 18  # survivors, for each of which some 60 bytes are held while they are placed


@dataclass(frozen=True)
class _Table:
    """A model as it is written: every frequency in the exponential Golomb code of this order."""

    model: Model
    order: int
    bits: int

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        value = self.model.frequencies + (1 << self.order)
        return value, _golomb_lengths(self.model.frequencies, self.order)


@dataclass(frozen=True)
class _Choice:
    mode: int
    background: int
    tables: tuple[_Table, ...]
    stream_bits: float


def estimated_bytes(tensor: QuantizedTensor) -> int:
    """The body's size to about a percent, from counts alone and without coding anything."""
    choice = _choice(flat_indices(tensor), len(tensor.codebook), tensor.zero)
    stream = choice.stream_bits / 8
    return int(stream * (1 + _LANE_SHARE)) + sum(table.bits for table in choice.tables) // 8 + 16


def encodable(tensor: QuantizedTensor) -> bool:
    """Whether the indices in use are few enough for frequencies of 2**15 in all."""
    return len(np.unique(tensor.indices)) <= 1 << MAX_PRECISION


def encode_body(tensor: QuantizedTensor) -> bytes:
    """The coded indices of a tensor that is `encodable`."""
    layout, flat = layout_of(tensor), flat_indices(tensor)
    choice = _choice(flat, layout.levels, tensor.zero)
    stream_bytes = choice.stream_bits / 8
    columns = _block_columns(layout, stream_bytes)
    blocks = max(1, -(-layout.columns // columns))
    lanes_log2 = int(
        np.clip(np.log2(max(1.0, stream_bytes / blocks * _LANE_SHARE / _LANE_BYTES)), 0, np.log2(MAX_LANES))
    )
    coded = [
        _encode_block(flat[first : first + columns * layout.rows], choice, 1 << lanes_log2)
        for first in range(0, layout.entries, max(1, columns * layout.rows))
    ]
    head = bytes(
        [choice.mode, lanes_log2, *(byte for table in choice.tables for byte in (table.model.precision, table.order))]
    )
    if choice.mode == RUNS:
        head += _varint(choice.background) + _varint(len(choice.tables[0].model.frequencies))
    head += _varint(columns)
    directory = b"".join(
        _varint(len(content)) + (_varint(survivors) if choice.mode == RUNS else b"") for content, survivors in coded
    )
    return head + _tables_bytes(choice.tables) + directory + b"".join(content for content, _ in coded)


def header_bytes(body: memoryview, layout: Layout) -> int:
    """The bytes of a body before its blocks: parameters, frequencies, directory."""
    blocks = Decoder(body, layout).blocks
    return blocks[0][0] if blocks else len(body)


def _choice(flat: np.ndarray, levels: int, zero: int | None) -> _Choice:
    counts = np.bincount(flat, minlength=levels)
    if len(flat) == 0:
        counts[0] = 1
    direct_table, direct_bits = _table(counts)
    direct = _Choice(DIRECT, 0, (direct_table,), direct_bits if len(flat) else 0.0)
    background = int(counts.argmax()) if zero is None or counts[zero] < len(flat) // 4 else zero
    if 2 * (len(flat) - counts[background]) > len(flat):
        return direct
    tokens, widths, _ = gaps.tokens_of(_distances(np.flatnonzero(flat != background)))
    if len(tokens) == 0:
        return direct
    gap_table, gap_bits = _table(np.bincount(tokens))
    counts[background] = 0
    value_table, value_bits = _table(counts)
    runs = _Choice(RUNS, background, (gap_table, value_table), gap_bits + value_bits + float(widths.sum()))
    handicap = 1 / _TIE if len(tokens) < _SPARSE * len(flat) else _TIE
    return runs if _total(runs) * handicap < _total(direct) else direct


def _total(choice: _Choice) -> float:
    return choice.stream_bits + sum(table.bits for table in choice.tables)


def _table(counts: np.ndarray) -> tuple[_Table, float]:
    """The frequencies and the order that make table and stream together smallest, and the stream's bits."""
    best: tuple[float, _Table, float] | None = None
    for precision in range(max(1, int(np.count_nonzero(counts) - 1).bit_length()), MAX_PRECISION + 1):
        model = fitted(counts, precision)
        order, table_bits = min(
            ((order, int(_golomb_lengths(model.frequencies, order).sum())) for order in range(precision)),
            key=lambda pair: pair[1],
        )
        stream = cost_bits(counts, model)
        if best is None or table_bits + stream < best[0]:
            best = (table_bits + stream, _Table(model, order, table_bits), stream)
    assert best is not None
    return best[1], best[2]


def _golomb_lengths(values: np.ndarray, order: int) -> np.ndarray:
    """Bits of exponential Golomb codes: v + 2**order in binary, behind one zero less its bits than `order`."""
    magnitude = np.frexp((values + (1 << order)).astype(np.float64))[1].astype(np.int64)
    return 2 * magnitude - 1 - order


def _tables_bytes(tables: Iterable[_Table]) -> bytes:
    codes = [table.codes() for table in tables]
    packed = bits.pack(np.concatenate([code for code, _ in codes]), np.concatenate([size for _, size in codes]))
    return packed[: (sum(int(size.sum()) for _, size in codes) + 7) // 8]


def _block_columns(layout: Layout, stream_bytes: float) -> int:
    """Columns of a block: as many as the coded bytes of one and the entries of one allow; all but the last have them."""
    blocks = max(1, int(stream_bytes // _BLOCK_BYTES), -(-layout.entries // _BLOCK_ENTRIES))
    return max(1, -(-layout.columns // blocks))


def _distances(places: np.ndarray) -> np.ndarray:
    """Entries skipped before each place."""
    return np.diff(places, prepend=-1) - 1


def _encode_block(flat: np.ndarray, choice: _Choice, lanes: int) -> tuple[bytes, int]:
    """One block's bytes, and its survivors."""
    if choice.mode == DIRECT:
        return encode([(flat, choice.tables[0].model)], lanes), 0
    places = np.flatnonzero(flat != choice.background)
    tokens, widths, extra = gaps.tokens_of(_distances(places))
    gap_model, value_model = (table.model for table in choice.tables)
    stream = encode([(tokens, gap_model), (flat[places], value_model)], lanes)
    return stream + bits.pack(extra, widths), len(places)


class Decoder:
    """Random access to the columns of one body: the blocks that they meet are decoded."""

    def __init__(self, body: memoryview, layout: Layout) -> None:
        self._layout, self._body = layout, body
        at = 2
        mode, lanes_log2 = self._bytes(0, 2)
        if mode not in (DIRECT, RUNS) or 1 << lanes_log2 > MAX_LANES:
            raise PwtError(PwtFault.bad_model, "ans", f"mode {mode} with 2^{lanes_log2} lanes")
        self._runs, self._lanes = mode == RUNS, 1 << lanes_log2
        parameters = self._bytes(at, 4 if self._runs else 2)
        at += len(parameters)
        for precision, order in zip(parameters[::2], parameters[1::2], strict=True):
            if not 1 <= precision <= MAX_PRECISION or order >= precision:
                raise PwtError(PwtFault.bad_model, "ans", f"precision {precision}, order {order}")
        self._background, sizes = 0, [layout.levels]
        if self._runs:
            self._background, at = self._varint(at)
            tokens, at = self._varint(at)
            if self._background >= layout.levels or not 1 <= tokens <= gaps.TOKENS:
                raise PwtError(PwtFault.bad_model, "ans", f"background {self._background}, {tokens} tokens")
            sizes = [tokens, layout.levels]
        self._block_columns, at = self._varint(at)
        if self._block_columns < 1:
            raise PwtError(PwtFault.bad_model, "ans", "blocks of no columns")
        self._models, at = self._tables(at, sizes, parameters)
        self.blocks: list[tuple[int, int, int]] = []  # where it begins and ends, and its survivors
        self._read_directory(at)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Indices of the columns [start, stop): [columns, rows]."""
        rows, kind = self._layout.rows, index_type(self._layout.levels)
        found = np.empty((stop - start, rows), kind)
        if found.size == 0:
            return found
        for number in range(start // self._block_columns, -(-stop // self._block_columns)):
            first = number * self._block_columns
            last = min(first + self._block_columns, self._layout.columns)
            block = self._block(number, (last - first) * rows).reshape(last - first, rows)
            low, high = max(start, first), min(stop, last)
            found[low - start : high - start] = block[low - first : high - first]
        return found

    def _block(self, number: int, entries: int) -> np.ndarray:
        begin, end, survivors = self.blocks[number]
        content = self._body[begin:end]
        stream = Stream(content, self._lanes)
        if not self._runs:
            flat = stream.symbols(entries, self._models[0])
            self._ends(stream.finish(), len(content))
            return flat
        tokens = stream.symbols(survivors, self._models[0])
        values = stream.symbols(survivors, self._models[1])
        width_of, smallest = gaps.widths_of(np.arange(gaps.TOKENS)), gaps.smallest_gaps(np.arange(gaps.TOKENS))
        chunks = [slice(first, first + _PLACED_AT_ONCE) for first in range(0, survivors, _PLACED_AT_ONCE)]
        used = stream.finish()
        extra_bits = sum(int(width_of[tokens[chunk]].sum()) for chunk in chunks)
        self._ends(used + bits.stream_bytes(extra_bits), len(content))
        flat = np.full(entries, self._background, index_type(self._layout.levels))
        words, position, place = bits.words_of(content[used:]), 0, -1
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

    def _tables(self, at: int, sizes: list[int], parameters: bytes) -> tuple[list[Model], int]:
        """The models, and where they end. A code has at most 31 bits, so that the text of them is bounded by the levels."""
        text = "".join(f"{byte:08b}" for byte in self._body[at : at + 4 * sum(sizes)])
        position, models = 0, []
        for size, precision, order in zip(sizes, parameters[::2], parameters[1::2], strict=True):
            frequencies = np.empty(size, np.int64)
            for symbol in range(size):
                one = text.find("1", position)
                end = 2 * one - position + order + 1
                if one < 0 or one - position > precision or end > len(text):
                    raise PwtError(PwtFault.bad_model, "ans", "the frequencies are cut short or too large")
                frequencies[symbol] = int(text[one:end], 2) - (1 << order)
                position = end
            if int(frequencies.sum()) != 1 << precision:
                raise PwtError(PwtFault.bad_model, "ans", f"frequencies do not add up to 2^{precision}")
            models.append(Model(frequencies, precision))
        if "1" in text[position : -(-position // 8) * 8]:
            raise PwtError(PwtFault.bad_model, "ans", "the bits behind the frequencies are not zero")
        return models, at + (position + 7) // 8

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


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
