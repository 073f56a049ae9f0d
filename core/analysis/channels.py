"""Channel analysis: which channels live or die together, what they cost, and where they are.

The network is interpreted on channel names (`core.analysis.trace`): every axis of every value carries a vector of
labels, operators tie or freeze labels. Labels that are tied form a **component**: it lives or dies as a whole. A label
vector's kept length is a linear function of which components are kept; components with equal coefficients in *all*
vectors are interchangeable in every cost and form a **group**, so that every cost is a function of one width per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csc_array

from core.analysis.context import components, tensor_arguments
from core.analysis.costs import CostTable, LiveProduct, Product, assert_exact, build_cost_table
from core.analysis.emptiness import bare_axes
from core.analysis.rows import CostRow, cost_rows
from core.analysis.schema import operator_name
from core.analysis.trace import Trace, layer_name, trace_network
from core.analysis.values import Labels, Value
from core.budget import Costs
from core.network import Network


@dataclass(frozen=True, eq=False)
class Group:
    """Prunable components that are interchangeable in every count. `label`: the layer that makes these channels."""

    index: int
    components: np.ndarray
    label: str


@dataclass(frozen=True)
class LayerWidth:
    """A width that must not become zero: a layer's output channels, or a piece that a split or slice cuts out.

    When group g keeps k_g components, the width is `fixed + Σ channels_per_component × k_g` over the terms
    (group, channels_per_component); `width` is its value in the unpruned network.
    """

    name: str
    width: int
    fixed: int
    terms: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class WeightSlices:
    """Slice i of `tensor` along `axis` belongs to component[i] (int64, −1 where the position has no label)."""

    tensor: str
    axis: int
    component: np.ndarray


@dataclass(frozen=True)
class Frozen:
    """Channels that an operator needs all of: its layer and name, and what it does with them."""

    layer: str
    operator: str
    reason: str


@dataclass(frozen=True, eq=False)
class ChannelAnalysis:
    """Result of `analyse`; immutable, valid for every network with this graph whatever its tensor values.

    components: number of coupled components, frozen ones included. groups: the prunable ones only.
    full_widths: int64, components per group. layers, slices, frozen: see their types.
    trace and component_of (component of every label) are for surgery and verification.
    """

    components: int
    groups: tuple[Group, ...]
    layers: tuple[LayerWidth, ...]
    slices: tuple[WeightSlices, ...]
    frozen: tuple[Frozen, ...]
    full_widths: np.ndarray
    cost_table: CostTable
    trace: Trace
    component_of: np.ndarray

    @property
    def faults(self) -> tuple[str, ...]:
        """Label rules that raised by mistake: sound (what they touch is frozen), but a bug to report."""
        return self.trace.faults

    def kept_labels(self, keep: np.ndarray) -> np.ndarray:
        """bool per label, from bool per component."""
        if keep.shape != (self.components,):
            raise ValueError(f"keep has shape {keep.shape}, expected ({self.components},)")
        return keep[self.component_of]

    def changed(self, keep: np.ndarray) -> tuple[Frozen, ...]:
        """Operators that run over the surviving channels only, and no longer over all of them, after this choice."""
        kept = self.kept_labels(keep)
        found = {
            Frozen(subset.layer, subset.operator, subset.reason): None
            for subset in self.trace.subsets.values()
            if not all(kept[read.labels].all() for read in subset.reads)
        }
        return tuple(found)

    def costs(self, widths: np.ndarray) -> Costs:
        """Exact costs when group g keeps widths[g] of its components, whichever they are; tens of microseconds."""
        return self.cost_table.evaluate(widths)

    def widths(self, keep: np.ndarray) -> np.ndarray:
        """int64 per group: how many of its components `keep` (bool per component) keeps."""
        return np.array([int(keep[group.components].sum()) for group in self.groups], dtype=np.int64)


def analyse(network: Network, *, survivors: bool = False) -> ChannelAnalysis:
    """Find the coupled channels of `network` and everything that planning needs to know of them. Runs no tensor.

    By default what is left computes exactly what it computed before, blind to the removed channels; an axis that a
    norm, a mean or a softmax runs over is frozen. With `survivors` these run over the channels that are left: more can
    be removed, and `ChannelAnalysis.changed(keep)` names the layers whose meaning changes with it.
    """
    trace = trace_network(network, survivors=survivors)
    count, component_of = components(trace.label_count, trace.ties)
    frozen = np.zeros(count, dtype=bool)
    for freeze in trace.freezes:
        frozen[component_of[freeze.labels]] = True
    vectors = _VectorTable(component_of, count)
    rows = cost_rows(network, trace)
    layers = _layer_vectors(network, trace)
    widths = [*layers, *trace.pieces]
    widths += bare_axes(trace, widths, component_of, frozen)
    for row in rows.all():
        vectors.add_all(row.vectors)
    vectors.add_all(vector for _, vector in widths)
    matrix = vectors.matrix()
    groups = _groups(matrix, frozen, _owners(network, trace, layers, component_of, count))
    representatives = np.array([group.components[0] for group in groups], dtype=np.int64)
    slope = matrix[:, representatives].toarray() if len(groups) else np.zeros((matrix.shape[0], 0))
    fixed = matrix @ frozen.astype(np.int64)
    full_widths = np.array([len(group.components) for group in groups], dtype=np.int64)
    table = build_cost_table(
        fixed,
        slope,
        params=_products(rows.params, vectors, fixed, slope),
        macs=_products(rows.macs, vectors, fixed, slope),
        weight_bytes=_products(rows.weight_bytes, vectors, fixed, slope),
        buffers=[
            LiveProduct(product, live.birth, live.death)
            for live, product in zip(
                rows.buffers, _products([live.row for live in rows.buffers], vectors, fixed, slope), strict=True
            )
        ],
    )
    assert_exact(table, full_widths)
    return ChannelAnalysis(
        components=count,
        groups=groups,
        layers=tuple(_layer_width(name, vectors.index(vector), fixed, slope, full_widths) for name, vector in widths),
        slices=tuple(_slices(trace, component_of)),
        frozen=_frozen_report(trace, layers, component_of, count),
        full_widths=full_widths,
        cost_table=table,
        trace=trace,
        component_of=component_of,
    )


class _VectorTable:
    """The distinct label vectors, as counts per component: the rows of the count matrix."""

    def __init__(self, component_of: np.ndarray, count: int) -> None:
        self._component_of = component_of
        self._count = count
        self._by_identity: dict[int, int] = {}
        self._by_content: dict[bytes, int] = {}
        self._by_counts: dict[tuple[bytes, bytes], int] = {}
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._alive: list[Labels] = []

    def index(self, vector: Labels) -> int:
        if id(vector) not in self._by_identity:
            members = self._component_of[vector]
            content = members.tobytes()
            if content not in self._by_content:
                self._by_content[content] = self._counted(members)
            self._by_identity[id(vector)] = self._by_content[content]
            self._alive.append(vector)
        return self._by_identity[id(vector)]

    def _counted(self, members: np.ndarray) -> int:
        present, counts = np.unique(members, return_counts=True)
        key = present.tobytes(), counts.tobytes()
        if key not in self._by_counts:
            self._by_counts[key] = len(self._rows)
            self._rows.append((present, counts))
        return self._by_counts[key]

    def add_all(self, vectors: Iterable[Labels]) -> None:
        for vector in vectors:
            self.index(vector)

    def matrix(self) -> csc_array:
        """int64 [vectors, components]: how many positions of each vector belong to each component."""
        sizes = [len(present) for present, _ in self._rows]
        if not sizes:
            return csc_array((0, self._count), dtype=np.int64)
        row = np.repeat(np.arange(len(sizes)), sizes)
        column = np.concatenate([present for present, _ in self._rows])
        data = np.concatenate([counts for _, counts in self._rows]).astype(np.int64)
        return coo_array((data, (row, column)), shape=(len(sizes), self._count)).tocsc()


def _groups(matrix: csc_array, frozen: np.ndarray, owners: list[str]) -> tuple[Group, ...]:
    """Free components with equal columns. Columns are compared by a 64-bit linear hash of their entries."""
    weights = np.random.default_rng(0).integers(1, 2**63, size=matrix.shape[0], dtype=np.uint64)
    signature = np.zeros(matrix.shape[1], dtype=np.uint64)
    column = np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr))
    np.add.at(signature, column, matrix.data.astype(np.uint64) * weights[matrix.indices])
    # A column without entries costs nothing and reaches no layer: whether it is kept makes no difference.
    free = np.flatnonzero(~frozen & (np.diff(matrix.indptr) > 0))
    members: dict[int, list[int]] = {}
    for component in free:
        members.setdefault(int(signature[component]), []).append(int(component))
    return tuple(
        Group(index, np.array(found, dtype=np.int64), owners[found[0]]) for index, found in enumerate(members.values())
    )


def _products(rows: Sequence[CostRow], vectors: _VectorTable, fixed: np.ndarray, slope: np.ndarray) -> list[Product]:
    """Rows over vector ids, with the vectors that cannot change folded into the constant."""
    varies = slope.any(axis=1)
    products = []
    for row in rows:
        constant, variable = row.constant, []
        for vector in row.vectors:
            index = vectors.index(vector)
            if varies[index]:
                variable.append(index)
            else:
                constant *= int(fixed[index])
        products.append(Product(constant, tuple(sorted(variable))))
    return products


def _layer_vectors(network: Network, trace: Trace) -> list[tuple[str, Labels]]:
    """The output channels of every layer that multiplies and owns its width."""
    counted = {row.node for row in trace.mac_rows}
    found = []
    for node in network.graph.nodes:
        value = trace.values[node.name]
        if node.name in counted and isinstance(value, Value):
            axis = 1 if operator_name(node.target).startswith("conv") else value.rank - 1
            if axis in value.labels:
                found.append((layer_name(node), value.labels[axis]))
    return found


def _layer_width(name: str, vector: int, fixed: np.ndarray, slope: np.ndarray, full_widths: np.ndarray) -> LayerWidth:
    terms = tuple((int(group), int(slope[vector, group])) for group in np.flatnonzero(slope[vector]))
    return LayerWidth(name, int(fixed[vector] + slope[vector] @ full_widths), int(fixed[vector]), terms)


def _slices(trace: Trace, component_of: np.ndarray) -> Iterator[WeightSlices]:
    for name, value in trace.tensors.items():
        for axis, vector in value.labels.items():
            yield WeightSlices(name, axis, component_of[vector])


def _owners(
    network: Network, trace: Trace, layers: Sequence[tuple[str, Labels]], component_of: np.ndarray, count: int
) -> list[str]:
    """Per component, the layer that makes its channels: one that multiplies, else whatever shows them first."""
    shown = [*layers]
    for node in network.graph.nodes:
        for value in tensor_arguments([trace.values[node.name]]):
            shown += [(layer_name(node), vector) for vector in value.labels.values()]
    first = np.full(count, len(shown), dtype=np.int64)
    seen: set[int] = set()
    for index, (_, vector) in enumerate(shown):
        if id(vector) not in seen:
            seen.add(id(vector))
            members = component_of[vector]
            first[members] = np.minimum(first[members], index)
    names = [*(name for name, _ in shown), ""]
    return [names[index] for index in first.tolist()]


def _frozen_report(
    trace: Trace, layers: Sequence[tuple[str, Labels]], component_of: np.ndarray, count: int
) -> tuple[Frozen, ...]:
    """What keeps the width of some layer; that pixels and constant tables stay whole is no news."""
    widths = np.zeros(count, dtype=bool)
    for _, vector in layers:
        widths[component_of[vector]] = True
    found = {
        Frozen(freeze.layer, freeze.operator, freeze.reason): None
        for freeze in trace.freezes
        if not freeze.quiet and widths[component_of[freeze.labels]].any()
    }
    return tuple(found)
