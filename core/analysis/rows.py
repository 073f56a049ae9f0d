"""Cost rows of a traced network: params, MACs, weight bytes and live activation bytes as products of kept lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.analysis.buffer_model import BYTES_PER_ELEMENT
from core.analysis.memory import Buffer, live_sets
from core.analysis.trace import Trace, storage_key
from core.analysis.values import Labels, Value, factors
from core.network import Network


@dataclass(frozen=True, eq=False)
class CostRow:
    """constant × Π kept lengths of `vectors`; `size` is its value in the unpruned network."""

    constant: int
    vectors: tuple[Labels, ...]

    @property
    def size(self) -> int:
        return self.constant * math.prod(len(vector) for vector in self.vectors)


@dataclass(frozen=True, eq=False)
class CostRows:
    """Every cost of a network as a sum of rows; `steps` has the live buffers of each execution step."""

    params: list[CostRow]
    macs: list[CostRow]
    weight_bytes: list[CostRow]
    steps: list[list[CostRow]]

    def all(self) -> Iterator[CostRow]:
        yield from self.params
        yield from self.macs
        yield from self.weight_bytes
        for step in self.steps:
            yield from step


def cost_rows(network: Network, trace: Trace) -> CostRows:
    """Tied tensors (two names of one storage) count once; tensors that no node reads count as they are."""
    params, weight_bytes = [], []
    names_by_storage: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in network.tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            names_by_storage.setdefault(storage_key(tensor), []).append(name)
    for names in names_by_storage.values():
        unread = Value(tuple(network.tensors[names[0]].shape))
        constant, vectors = factors(trace.tensors.get(names[0], unread))
        if not network.parameter_names.isdisjoint(names):
            params.append(CostRow(constant, vectors))
        weight_bytes.append(CostRow(BYTES_PER_ELEMENT * constant, vectors))
    macs = [CostRow(row.constant, row.vectors) for row in trace.mac_rows]
    rows: dict[Buffer, CostRow] = {}
    steps = []
    for live in live_sets(network.graph):
        for buffer in live:
            if buffer not in rows:
                rows[buffer] = _buffer_row(buffer, trace)
        steps.append([rows[buffer] for buffer in live])
    return CostRows(params, macs, weight_bytes, steps)


def _buffer_row(buffer: Buffer, trace: Trace) -> CostRow:
    value = trace.values[buffer.node]
    constant, vectors = factors(value if buffer.item is None else value[buffer.item])
    return CostRow(BYTES_PER_ELEMENT * constant, vectors)
