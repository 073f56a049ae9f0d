"""Contexts: weights whose output and input channels are alike in scale share a table of frequencies.

Channels of a trained layer differ in scale, and a table for all of them fits none. Every column (output) and every input
channel has a class from 0 to 15; their sum, less an offset and cut to the count of contexts, chooses the table. Classes are
logarithms of mean magnitudes, in steps in which the layer spreads over the contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.encoding import tables
from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import Layout
from core.encoding.rans import Model, cost_bits

MAX_CONTEXTS = 16
MAX_PRECISION = 13  # tables of all contexts take room for every slot
PRECISION = 12  # of the writer: sixteen tables of 2^12 slots stay near the processor
_CLASSES = 16
_COUNTS = (2, 4, 8, 16)
_LARGEST_KNOTS = (15, 31, 63, 127, 255, 1023, 4095)
_MOST_LEVELS = 1024  # beyond, tables would be longer than what they save
_SPREAD = 4.0  # standard deviations of the logarithm over which contexts are laid out


@dataclass(frozen=True)
class Contexts:
    """columns, rows: classes of columns and of input channels. The context of an entry is their sum less `offset`, from 0
    to count − 1."""

    columns: np.ndarray
    rows: np.ndarray
    offset: int
    count: int

    def of_columns(self, layout: Layout, start: int, stop: int) -> np.ndarray:
        """uint8, flat, of the columns [start, stop)."""
        across = np.repeat(self.rows.astype(np.int16), layout.rows // max(1, len(self.rows))) - np.int16(self.offset)
        sums = self.columns[start:stop, None].astype(np.int16) + across
        return np.clip(sums, 0, self.count - 1).astype(np.uint8).reshape(-1)

    def written(self) -> bytes:
        """Two classes a byte, the first in the high half; columns, then rows."""
        classes = np.concatenate([self.columns, self.rows]).astype(np.uint8)
        padded = np.append(classes, np.zeros(len(classes) % 2, np.uint8)).reshape(-1, 2)
        return (padded[:, 0] << 4 | padded[:, 1]).tobytes()


def read_classes(content: bytes, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The classes of columns and of rows."""
    pairs = np.frombuffer(content, np.uint8)
    classes = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)
    count = layout.columns + channels_of(layout)
    if (classes[count:] != 0).any():
        raise PwtError(PwtFault.bad_model, "ans", "the half byte behind the classes is not zero")
    return classes[: layout.columns], classes[layout.columns : count]


def class_bytes(layout: Layout) -> int:
    return (layout.columns + channels_of(layout) + 1) // 2


def channels_of(layout: Layout) -> int:
    """Input channels, each with rows // channels rows: the second axis, or one for vectors and scalars."""
    return layout.shape[1] if len(layout.shape) > 1 else 1


@dataclass(frozen=True)
class ContextModel:
    """How one tensor is coded with contexts, and what that takes: `bits` of tables and classes, `stream_bits`."""

    contexts: Contexts
    knots: np.ndarray
    stride_log2: int
    order: int
    model: Model
    bits: int
    stream_bits: float


def best_contexts(flat: np.ndarray, codebook: np.ndarray, layout: Layout) -> ContextModel | None:
    """The smallest of several counts of contexts; None where contexts make no sense."""
    if len(layout.shape) < 2 or layout.levels > _MOST_LEVELS or len(flat) == 0:
        return None
    found = [_fitted(flat, codebook, layout, count) for count in _COUNTS]
    return min(found, key=lambda one: one.bits + one.stream_bits)


def _fitted(flat: np.ndarray, codebook: np.ndarray, layout: Layout, count: int) -> ContextModel:
    contexts = _classified(_magnitudes(flat, codebook), layout, count)
    place = contexts.of_columns(layout, 0, layout.columns).astype(np.int64) * layout.levels + flat
    counts = np.bincount(place, minlength=count * layout.levels).reshape(count, layout.levels)
    best: ContextModel | None = None
    fixed = 8 * class_bytes(layout)
    for stride_log2 in range(min(tables.MAX_STRIDE_LOG2, max(1, (layout.levels - 1).bit_length() - 1))):
        means, needed = _knot_means(counts, stride_log2)
        for largest in _LARGEST_KNOTS:
            scaled = np.round(means * (largest / np.maximum(means.max(axis=1, keepdims=True), 1e-9))).astype(np.int64)
            knots = np.where(needed, np.maximum(1, scaled), 0)
            frequencies = tables.between(knots, stride_log2, layout.levels, PRECISION)
            model = Model(frequencies.reshape(-1), PRECISION, count)
            order, table_bits = tables.cheapest_order(knots.reshape(-1), PRECISION)
            stream = cost_bits(counts.reshape(-1), model)
            if best is None or fixed + table_bits + stream < best.bits + best.stream_bits:
                best = ContextModel(contexts, knots, stride_log2, order, model, fixed + table_bits, stream)
    assert best is not None
    return best


def _knot_means(counts: np.ndarray, stride_log2: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean counts around each knot, weighted by nearness; and which knots a symbol that occurs needs above zero."""
    symbols, stride = counts.shape[1], 1 << stride_log2
    knots = tables.knots_of(symbols, stride_log2)
    distance = np.abs(np.arange(symbols)[:, None] - np.arange(knots)[None] * stride)
    near = np.maximum(0.0, 1 - distance / stride)
    sums, shares = counts @ near, near.sum(axis=0)
    return sums / np.maximum(shares, 1e-9), sums > 0


def _magnitudes(flat: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """How many values lie between each entry's and the median one. Fine-tuning moves values but not their order, and so
    changes no context and no byte of what is coded."""
    rank = np.argsort(np.argsort(codebook, kind="stable"), kind="stable")
    counts = np.bincount(rank[flat], minlength=len(codebook))
    median = int(np.searchsorted(np.cumsum(counts), len(flat) / 2))
    return np.abs(rank - median).astype(np.float64)[flat]


def _classified(magnitudes: np.ndarray, layout: Layout, count: int) -> Contexts:
    cube = magnitudes.reshape(layout.columns, channels_of(layout), -1)
    tiny = max(float(cube.mean()), 1e-30) * 2.0**-8
    columns, rows = (np.log2(cube.mean(axis=axes) + tiny) for axes in ((1, 2), (0, 2)))
    step = max(_SPREAD * float(np.hypot(columns.std(), rows.std())) / count, 1e-3)
    centre, classes = 0.0, []
    for scales in (columns, rows):
        # What lies far below the rest need not be told apart.
        lowest = max(float(scales.min()), float(scales.mean()) - (_CLASSES // 2) * step)
        classes.append(np.clip(np.round((scales - lowest) / step), 0, _CLASSES - 1).astype(np.uint8))
        centre += (float(scales.mean()) - lowest) / step
    return Contexts(classes[0], classes[1], max(0, round(centre - (count - 1) / 2)), count)
