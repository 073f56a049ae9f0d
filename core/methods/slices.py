"""Slices: sums over everything that belongs to a coupled component.

A component owns slices of many tensors: the filters that make its channels, the columns that read them, the entries of
biases and norms. Scores sum a quantity over these slices; each tensor is passed over once, whatever its labelled axes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from core.analysis import ChannelAnalysis, WeightSlices
from core.analysis.trace import storage_key
from core.network import Network

_CHUNK_ELEMENTS = 2**19


def matrices(tensor: Tensor) -> bool:
    """Weights with at least two axes: no biases, scales or statistics."""
    return tensor.is_floating_point() and tensor.ndim >= 2


def component_sums(
    network: Network,
    analysis: ChannelAnalysis,
    counts: Callable[[Tensor], bool],
    measure: Callable[[Tensor, Sequence[int]], Mapping[int, Tensor]],
) -> np.ndarray:
    """float64 per component: `measure` summed over all slices of the component in tensors that `counts`.

    measure: (tensor, its axes that can be cut) → per axis, one number per slice. Tensors of which nothing can be cut are
    not looked at; names that share a tensor count once.
    """
    total = np.zeros(analysis.components)
    for name, found in prunable_slices(network, analysis, counts).items():
        per_axis = measure(network.tensors[name].detach(), [slices.axis for slices in found])
        for slices in found:
            total += component_totals(slices, per_axis[slices.axis], analysis.components)
    return total


def prunable_slices(
    network: Network, analysis: ChannelAnalysis, counts: Callable[[Tensor], bool]
) -> dict[str, list[WeightSlices]]:
    """Per tensor that `counts`, its axes of which something can be cut, in order; one name per shared tensor."""
    prunable = np.zeros(analysis.components + 1, dtype=bool)
    for group in analysis.groups:
        prunable[group.components] = True
    by_tensor: dict[str, list[WeightSlices]] = defaultdict(list)
    names: dict[tuple[object, ...], str] = {}
    for slices in analysis.slices:
        tensor = network.tensors[slices.tensor]
        # A position without a component (−1) reads the last entry, which is False.
        if counts(tensor) and prunable[slices.component].any():
            first = names.setdefault(storage_key(tensor), slices.tensor) if tensor.numel() else slices.tensor
            if first == slices.tensor:
                by_tensor[slices.tensor].append(slices)
    return {name: sorted(found, key=lambda one: one.axis) for name, found in by_tensor.items()}


def component_totals(slices: WeightSlices, per_slice: Tensor, components: int) -> np.ndarray:
    """float64 per component: the numbers of its slices, summed."""
    labelled = slices.component >= 0
    return np.bincount(slices.component[labelled], per_slice.cpu().numpy()[labelled], minlength=components)


def slice_powers(weight: Tensor, axes: Sequence[int], norm: int) -> dict[int, Tensor]:
    """Per axis of `axes`, Σ|w|^norm of its slices: one pass over the weight, in parts that fit in the cache.

    Parts are summed in the weight's own type (pairwise, so to about 1e-7 in float32) and added up in float64; all of it
    in float64 takes several times as long.
    """
    sums = {axis: weight.new_zeros(weight.shape[axis], dtype=torch.float64) for axis in axes}
    inner = [axis for axis in axes if axis != 0]
    step = max(1, _CHUNK_ELEMENTS * len(weight) // max(1, weight.numel()))
    for start in range(0, len(weight), step):
        part = weight[start : start + step]
        part = part.abs() if norm == 1 else part.square()
        if 0 in sums:
            sums[0][start : start + step] = part.flatten(1).sum(1)
        if inner:
            rest = part.sum(0)
            for axis in inner:
                others = [other for other in range(rest.ndim) if other != axis - 1]
                sums[axis] += rest.sum(others) if others else rest
    return sums
