"""`ans`: static interleaved rANS per tensor, in blocks of columns that decode on their own (specified in docs/pwt.md).

Three models, of which the smallest is taken. *Direct* codes every entry as its index. *Runs* codes the survivors only: the
distance to each from the one before (`gaps`), and its index; the entries between them are the most frequent index.
*Contexts* is direct with a table for every class of channels (`contexts`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.encoding import bits, gaps, tables
from core.encoding.ans_decoder import CONTEXTS, DIRECT, FREE_ROUNDS, ROUNDS_A_BYTE, RUNS, Decoder
from core.encoding.contexts import ContextModel, best_contexts
from core.encoding.layout import Layout, flat_indices, layout_of
from core.encoding.quantized import QuantizedTensor
from core.encoding.rans import MAX_LANES, MAX_PRECISION, Model, cost_bits, encode, fitted

_BLOCK_BYTES = 1 << 18  # of coded bytes: enough for several hundred lanes
_BLOCK_ENTRIES = 1 << 20  # of entries: what a decoder holds at a time, and what another core can take
_LANE_BYTES = 3  # what a lane costs: two bytes of its first state, and about one of its last
_LANE_SHARE = 0.005  # of the coded bytes that lanes may cost
_SPARSE = 0.25  # below this share of survivors runs decode faster, so that a tie goes to them
_TIE = 1.002


@dataclass(frozen=True)
class _Table:
    """A model as it is written: every frequency in the exponential Golomb code of this order."""

    model: Model
    order: int
    bits: int


@dataclass(frozen=True)
class _Choice:
    mode: int
    background: int
    tables: tuple[_Table, ...]
    stream_bits: float
    contexts: ContextModel | None = None

    @property
    def total_bits(self) -> float:
        return self.stream_bits + (self.contexts.bits if self.contexts else sum(table.bits for table in self.tables))


__all__ = ["Decoder", "encodable", "encode_body", "header_bytes"]


def encodable(tensor: QuantizedTensor) -> bool:
    """Whether the indices in use are few enough for frequencies of 2**15 in all."""
    return len(np.unique(tensor.indices)) <= 1 << MAX_PRECISION


def encode_body(tensor: QuantizedTensor) -> bytes:
    """The coded indices of a tensor that is `encodable`."""
    layout, flat = layout_of(tensor), flat_indices(tensor)
    choice = _choice(flat, tensor, layout)
    stream_bytes = choice.stream_bits / 8
    columns = _block_columns(layout, stream_bytes)
    blocks = max(1, -(-layout.columns // columns))
    wanted = max(stream_bytes / blocks * _LANE_SHARE / _LANE_BYTES, _least_lanes(layout, columns, stream_bytes))
    lanes_log2 = int(np.clip(np.log2(max(1.0, wanted)), 0, np.log2(MAX_LANES)))
    coded = [
        _encode_block(flat, choice, layout, first, min(first + columns, layout.columns), 1 << lanes_log2)
        for first in range(0, layout.columns if layout.entries else 0, columns)
    ]
    directory = b"".join(
        _varint(len(content)) + (_varint(survivors) if choice.mode == RUNS else b"") for content, survivors in coded
    )
    head = bytes([choice.mode, lanes_log2]) + _parameters(choice, columns)
    return head + directory + b"".join(content for content, _ in coded)


def header_bytes(body: memoryview, layout: Layout) -> int:
    """The bytes of a body before its blocks: parameters, frequencies, directory."""
    blocks = Decoder(body, layout).blocks
    return blocks[0][0] if blocks else len(body)


def _parameters(choice: _Choice, columns: int) -> bytes:
    """What stands between the lanes and the directory."""
    if choice.contexts is not None:
        own = choice.contexts
        head = bytes([own.model.precision, own.order, own.stride_log2, own.contexts.count])
        head += _varint(own.contexts.offset) + _varint(columns) + own.contexts.written()
        return head + tables.written([(own.knots, own.order)])
    head = bytes(byte for table in choice.tables for byte in (table.model.precision, table.order))
    if choice.mode == RUNS:
        head += _varint(choice.background) + _varint(len(choice.tables[0].model.frequencies))
    frequencies = [(table.model.frequencies, table.order) for table in choice.tables]
    return head + _varint(columns) + tables.written(frequencies)


def _choice(flat: np.ndarray, tensor: QuantizedTensor, layout: Layout) -> _Choice:
    found = _plain_choice(flat, layout.levels, tensor.zero)
    own = best_contexts(flat, tensor.codebook, layout)
    if own is None:
        return found
    contexts = _Choice(CONTEXTS, 0, (), own.stream_bits, own)
    return contexts if contexts.total_bits * _TIE < found.total_bits else found


def _plain_choice(flat: np.ndarray, levels: int, zero: int | None) -> _Choice:
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
    return runs if runs.total_bits * handicap < direct.total_bits else direct


def _table(counts: np.ndarray) -> tuple[_Table, float]:
    """The frequencies and the order that make table and stream together smallest, and the stream's bits."""
    best: tuple[float, _Table, float] | None = None
    for precision in range(max(1, int(np.count_nonzero(counts) - 1).bit_length()), MAX_PRECISION + 1):
        model = fitted(counts, precision)
        order, table_bits = tables.cheapest_order(model.frequencies, precision)
        stream = cost_bits(counts, model)
        if best is None or table_bits + stream < best[0]:
            best = (table_bits + stream, _Table(model, order, table_bits), stream)
    assert best is not None
    return best[1], best[2]


def _block_columns(layout: Layout, stream_bytes: float) -> int:
    """Columns of a block: as many as the coded bytes of one and the entries of one allow; all but the last have them."""
    blocks = max(1, int(stream_bytes // _BLOCK_BYTES), -(-layout.entries // _BLOCK_ENTRIES))
    return max(1, -(-layout.columns // blocks))


def _least_lanes(layout: Layout, columns: int, stream_bytes: float) -> float:
    """So many that a reader does not refuse the rounds; twice as many as it must be, as lanes are a power of two."""
    entries = 2 * layout.entries + 2 * layout.columns / columns * MAX_LANES
    return 2 * entries / (FREE_ROUNDS + ROUNDS_A_BYTE * stream_bytes)


def _distances(places: np.ndarray) -> np.ndarray:
    """Entries skipped before each place."""
    return np.diff(places, prepend=-1) - 1


def _encode_block(
    whole: np.ndarray, choice: _Choice, layout: Layout, start: int, stop: int, lanes: int
) -> tuple[bytes, int]:
    """The bytes of the columns [start, stop), and their survivors."""
    flat = whole[start * layout.rows : stop * layout.rows]
    if choice.contexts is not None:
        context = choice.contexts.contexts.of_columns(layout, start, stop).astype(np.int64)
        return encode([(context * layout.levels + flat, choice.contexts.model)], lanes), 0
    if choice.mode == DIRECT:
        return encode([(flat, choice.tables[0].model)], lanes), 0
    places = np.flatnonzero(flat != choice.background)
    tokens, widths, extra = gaps.tokens_of(_distances(places))
    gap_model, value_model = (table.model for table in choice.tables)
    stream = encode([(tokens, gap_model), (flat[places], value_model)], lanes)
    return stream + bits.pack(extra, widths), len(places)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
