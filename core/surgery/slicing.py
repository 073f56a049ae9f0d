"""Apply a choice of channels: slice the tensors, rewrite the literals, refresh the shapes. Nothing is re-traced.

    pruned = apply(network, analysis, keep)      keep: bool per component, frozen ones True

The given network is not touched: the result has a new graph, and tensors of its own wherever something was cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node

from core.analysis.channels import ChannelAnalysis
from core.analysis.context import Edit
from core.analysis.trace import storage_key
from core.analysis.values import Labels, Value
from core.network import Network, TensorMeta

_CHUNK_ELEMENTS = 2**18


def apply(network: Network, analysis: ChannelAnalysis, keep: np.ndarray) -> Network:
    """The network with only the kept components, under the same names (every state_dict key survives).

    Raises ValueError when `keep` removes a frozen component or empties a layer.
    """
    kept = analysis.kept_labels(keep)
    _check(analysis, keep, kept)
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in network.graph.nodes:
        copy = graph.node_copy(node, copies.__getitem__)
        copy.meta = {**node.meta}
        if "value" in node.meta:
            copy.meta["value"] = _kept_meta(node.meta["value"], analysis.trace.values[node.name], kept)
        copies[node] = copy
    by_name = {node.name: copy for node, copy in copies.items()}
    for name, rewrite in analysis.trace.rewrites:
        rewrite(Edit(by_name[name], graph, kept))
    _erase_unused_sizes(graph)
    graph.lint()
    return replace(network, graph=graph, tensors=slice_tensors(network, analysis, keep))


def slice_tensors(network: Network, analysis: ChannelAnalysis, keep: np.ndarray) -> Mapping[str, Tensor]:
    """Every tensor of the network cut to its kept labels; names of one storage keep sharing one."""
    kept = analysis.kept_labels(keep)
    indices = kept_indices(analysis, keep)
    sliced: dict[Any, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.tensors.items():
        points_into = analysis.trace.positions.get(name)
        if name not in indices:
            tensors[name] = _renumbered(tensor, points_into, kept)
            continue
        key = storage_key(tensor)
        if key not in sliced:
            sliced[key] = _renumbered(_cut(tensor.detach(), indices[name]), points_into, kept)
        tensors[name] = sliced[key]
    return MappingProxyType(tensors)


def _cut(tensor: Tensor, indices: Sequence[np.ndarray | None]) -> Tensor:
    """The kept part, cut row by row: what lies between two cuts stays in the cache."""
    chosen = [None if index is None else torch.from_numpy(index).to(tensor.device) for index in indices]
    axes = [axis for axis, index in enumerate(chosen) if axis and index is not None]
    if not axes:
        return tensor.index_select(0, chosen[0])
    rows = len(tensor) if chosen[0] is None else len(chosen[0])
    result = tensor.new_empty(
        [rows, *(tensor.shape[axis] if chosen[axis] is None else len(chosen[axis]) for axis in range(1, tensor.ndim))]
    )
    step = max(1, _CHUNK_ELEMENTS * len(tensor) // tensor.numel())
    for start in range(0, rows, step):
        place = slice(start, start + step)
        part = tensor[place] if chosen[0] is None else tensor.index_select(0, chosen[0][place])
        for axis in axes[:-1]:
            part = part.index_select(axis, chosen[axis])
        torch.index_select(part, axes[-1], chosen[axes[-1]], out=result[place])
    return result


def kept_indices(analysis: ChannelAnalysis, keep: np.ndarray) -> dict[str, tuple[np.ndarray | None, ...]]:
    """Per tensor that is cut, by name: the kept indices along each axis, None where the whole axis is kept."""
    kept = analysis.kept_labels(keep)
    indices = {}
    for name, value in analysis.trace.tensors.items():
        cut = {axis: np.flatnonzero(kept[vector]) for axis, vector in value.labels.items() if not kept[vector].all()}
        if cut:
            indices[name] = tuple(cut.get(axis) for axis in range(len(value.shape)))
    return indices


def _renumbered(tensor: Tensor, labels: Labels | None, kept: np.ndarray) -> Tensor:
    """Positions along an axis, counted over its kept labels."""
    if labels is None or kept[labels].all():
        return tensor
    new = torch.from_numpy(np.cumsum(kept[labels]) - 1).to(tensor)
    return new[tensor]


def _check(analysis: ChannelAnalysis, keep: np.ndarray, kept: np.ndarray) -> None:
    for freeze in analysis.trace.freezes:
        if not kept[freeze.labels].all():
            raise ValueError(f"keep removes channels that {freeze.layer} ({freeze.operator}) needs: {freeze.reason}")
    widths = analysis.widths(keep)
    for layer in analysis.layers:
        if layer.fixed + sum(count * int(widths[group]) for group, count in layer.terms) == 0:
            raise ValueError(f"keep removes every channel of {layer.name}")


def _kept_meta(meta: Any, value: Any, kept: np.ndarray) -> Any:
    if isinstance(meta, TensorMeta) and isinstance(value, Value):
        shape = tuple(
            int(kept[value.labels[axis]].sum()) if axis in value.labels else size
            for axis, size in enumerate(meta.shape)
        )
        return TensorMeta(shape, meta.dtype)
    if isinstance(meta, tuple):
        return tuple(_kept_meta(item, one, kept) for item, one in zip(meta, value, strict=True))
    return meta


def _erase_unused_sizes(graph: Graph) -> None:
    """Sizes that a rewrite replaced by a literal are computed for nobody."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and isinstance(node.meta["value"], int) and not node.users:
            graph.erase_node(node)
