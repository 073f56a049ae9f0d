"""Channel analysis: which channels live or die together, what they cost, and where they are.

The network is interpreted on channel names (`core.analysis.trace`): every axis of every value carries a vector of
labels, operators tie or freeze labels. Labels that are tied form a **component**: it lives or dies as a whole. A label
vector's kept length is a linear function of which components are kept; components with equal coefficients in *all*
vectors are interchangeable in every cost and form a **group**, so that every cost is a function of one width per group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.analysis.costs import CostTable
from core.budget import Costs


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
    """Channels that cannot be removed: the layer and operator that need them, and why."""

    layer: str
    operator: str
    reason: str


@dataclass(frozen=True, eq=False)
class ChannelAnalysis:
    """Result of `analyse`; immutable, valid for every network with this graph whatever its tensor values.

    components: number of coupled components, frozen ones included. groups: the prunable ones only.
    full_widths: int64, components per group. layers, slices, frozen: see their types.
    """

    components: int
    groups: tuple[Group, ...]
    layers: tuple[LayerWidth, ...]
    slices: tuple[WeightSlices, ...]
    frozen: tuple[Frozen, ...]
    full_widths: np.ndarray
    cost_table: CostTable

    def costs(self, widths: np.ndarray) -> Costs:
        """Exact costs when group g keeps widths[g] of its components, whichever they are; tens of microseconds."""
        return self.cost_table.evaluate(widths)

    def widths(self, keep: np.ndarray) -> np.ndarray:
        """int64 per group: how many of its components `keep` (bool per component) keeps."""
        return np.array([int(keep[group.components].sum()) for group in self.groups], dtype=np.int64)
