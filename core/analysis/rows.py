"""Cost rows of a traced network: params, MACs, weight bytes and live activation bytes as products of kept lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from core.analysis.buffer_model import BYTES_PER_ELEMENT
from core.analysis.memory import Buffer, buffers
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
class LiveRow:
    """The bytes of a buffer that is live in the execution steps birth … death, both included."""

    row: CostRow
    birth: int
    death: int


@dataclass(frozen=True, eq=False)
class CostRows:
    """Every cost of a network as a sum of rows; live activation bytes as a sum over the buffers of each step."""

    params: list[CostRow]
    macs: list[CostRow]
    weight_bytes: list[CostRow]
    buffers: list[LiveRow]

    def all(self) -> Iterator[CostRow]:
        yield from self.params
        yield from self.macs
        yield from self.weight_bytes
        for buffer in self.buffers:
            yield buffer.row

    @property
    def peak_bytes(self) -> int:
        """Live bytes of the unpruned network at its worst step."""
        change = [0] * (2 + max((buffer.death for buffer in self.buffers), default=0))
        for buffer in self.buffers:
            change[buffer.birth] += buffer.row.size
            change[buffer.death + 1] -= buffer.row.size
        return max(accumulate(change))


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
    live = [LiveRow(_buffer_row(one, trace), one.birth, one.death) for one in buffers(network.graph)]
    return CostRows(params, macs, weight_bytes, live)


def _buffer_row(buffer: Buffer, trace: Trace) -> CostRow:
    value = trace.values[buffer.node]
    constant, vectors = factors(value if buffer.item is None else value[buffer.item])
    return CostRow(BYTES_PER_ELEMENT * constant, vectors)
