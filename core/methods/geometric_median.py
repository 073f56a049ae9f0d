"""Geometric median: filters that the others can stand in for go first.

He, Liu, Wang, Hu, Yang: Filter Pruning via Geometric Median (FPGM, arXiv 1811.00250). The filters of a layer that lie
closest to their common geometric median are replaceable by the rest, whatever their norm. As in the paper the median
is not computed: the sum of the distances to all other filters of the layer orders the filters in the same way,

    g(x) = Σ_j ‖x − x_j‖₂.

For coupled channels the distances count over all slices of a component at once: tensor by tensor, squared distances
between the slices of two components add up, as if the slices were one long filter. Only components of one group are
compared, because only they have slices of the same shapes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.analysis import ChannelAnalysis, Group, WeightSlices
from core.methods.method import Evidence, Method
from core.methods.options import PlanConfig
from core.methods.slices import matrices, prunable_slices
from core.network import Network

# Elements of a slice matrix that are multiplied at once.
_CHUNK_ELEMENTS = 2**22
# Beyond so many multiplications of one matrix, float32 is exact enough: it only moves filters that are all but equal.
_MOST_IN_DOUBLE = 2**33


def scores(network: Network, analysis: ChannelAnalysis, config: PlanConfig, evidence: Evidence) -> np.ndarray:
    """float64 per component: the sum of its distances to the other components of its group. The seed has no part.

    A component outside every group scores 0. A group whose components differ in the number of their slices of some
    tensor is compared by the slices that all of them have.
    """
    found = np.zeros(analysis.components)
    lying = _by_group(network, analysis)
    for group in analysis.groups:
        squared = torch.zeros((len(group.components),) * 2, dtype=torch.float64)
        for slices, members in lying.get(group.index, ()):
            squared += squared_distances(_rows(network.tensors[slices.tensor], slices, members, group))
        found[group.components] = squared.sqrt().sum(1).numpy()
    return found


def squared_distances(rows: Tensor) -> Tensor:
    """float64 [n, n]: squared distances between the rows of an [n, d] matrix, in parts that fit in memory."""
    count, length = rows.shape
    dtype = torch.float64 if count * count * length <= _MOST_IN_DOUBLE else torch.float32
    products = torch.zeros((count, count), dtype=torch.float64)
    step = max(1, _CHUNK_ELEMENTS // count)
    for start in range(0, length, step):
        part = rows[:, start : start + step].to(dtype)
        # Distances do not see a common shift, and without it less cancels.
        part = part - part.mean(0)
        products += part @ part.T
    norms = products.diagonal()
    squared = (norms[:, None] + norms[None, :] - 2 * products).clamp_min_(0)
    return squared.fill_diagonal_(0)


def _by_group(network: Network, analysis: ChannelAnalysis) -> dict[int, list[tuple[WeightSlices, np.ndarray]]]:
    """Per group, the tensor axes that it lies along, with the positions there that are its components'."""
    group_of = np.full(analysis.components + 1, -1, dtype=np.int64)
    for group in analysis.groups:
        group_of[group.components] = group.index
    lying: dict[int, list[tuple[WeightSlices, np.ndarray]]] = {}
    for found in prunable_slices(network, analysis, matrices).values():
        for slices in found:
            # A position without a component (−1) reads the last entry, which is in no group.
            groups = group_of[slices.component]
            for group in np.unique(groups[groups >= 0]).tolist():
                lying.setdefault(group, []).append((slices, np.flatnonzero(groups == group)))
    return lying


def _rows(tensor: Tensor, slices: WeightSlices, members: np.ndarray, group: Group) -> Tensor:
    """[components of the group, elements of their slices]: the positions of a component one after another."""
    order = np.argsort(group.components)
    rows = order[np.searchsorted(group.components[order], slices.component[members])]
    counts = np.bincount(rows, minlength=len(order))
    starts = np.cumsum(counts) - counts
    common = int(counts.min())
    sequence = members[np.argsort(rows, kind="stable")]
    index = torch.from_numpy(sequence[(starts[:, None] + np.arange(common)).ravel()])
    return tensor.detach().cpu().index_select(slices.axis, index).movedim(slices.axis, 0).reshape(len(order), -1)


METHOD = Method(
    type="geometric_median",
    title="Filter pruning via geometric median",
    description="Removes the channels that the others of their group can best stand in for, down to the budget.",
    paper="arXiv:1811.00250",
    options={},
    config_type=PlanConfig,
    score=scores,
)
