"""Magnitude: channels whose coupled weights are small go first.

Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets (arXiv 1608.08710) scores a filter by the
norm of its weights. Channels that residual sums and concatenations tie together live or die together, so the norm is
taken over all slices of the coupled component, as in Fang et al., DepGraph (arXiv 2301.12900): the filters that make
the channel and the slices that read it.

Only weights with at least two axes count. Biases, batch-norm scales and statistics have other units: batch-norm divides
by the channel's own deviation, so its scale says how loud the channel is, not how much its weights do.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.analysis import ChannelAnalysis, WeightSlices
from core.methods.method import Method
from core.methods.options import PLAN_OPTIONS
from core.network import Network
from core.planning import PlanOptions

_CHUNK_ELEMENTS = 2**17


@dataclass(frozen=True)
class MagnitudeConfig:
    """norm: 1 or 2. min_channels, round_to: see `PlanOptions`."""

    norm: int = 2
    min_channels: int | None = None
    round_to: int = 1


def plan_options(config: MagnitudeConfig) -> PlanOptions:
    return PlanOptions(min_channels=config.min_channels, round_to=config.round_to)


def scores(network: Network, analysis: ChannelAnalysis, config: MagnitudeConfig, seed: int) -> np.ndarray:
    """float64 per component: the norm of all weight slices that belong to it. Deterministic; `seed` has no part."""
    prunable = np.zeros(analysis.components, dtype=bool)
    for group in analysis.groups:
        prunable[group.components] = True
    by_tensor: dict[str, list[WeightSlices]] = defaultdict(list)
    for slices in analysis.slices:
        if network.tensors[slices.tensor].ndim >= 2 and prunable[slices.component[slices.component >= 0]].any():
            by_tensor[slices.tensor].append(slices)
    total = np.zeros(analysis.components)
    for name, found in by_tensor.items():
        axes = sorted(slices.axis for slices in found)
        power = _power(network.tensors[name].detach(), axes, config.norm)
        for slices in found:
            per_slice = power[slices.axis].cpu().numpy()
            labelled = slices.component >= 0
            total += np.bincount(slices.component[labelled], per_slice[labelled], minlength=analysis.components)
    return total ** (1 / config.norm)


def _power(weight: Tensor, axes: list[int], norm: int) -> dict[int, Tensor]:
    """Per axis of `axes`, Σ|w|^norm of its slices, float64: one pass over the weight, in parts that fit in the cache."""
    axis_sums = {axis: weight.new_zeros(weight.shape[axis], dtype=torch.float64) for axis in axes}
    step = max(1, _CHUNK_ELEMENTS * len(weight) // weight.numel())
    for start in range(0, len(weight), step):
        part = weight[start : start + step].double()
        part = part.abs() if norm == 1 else part.square()
        for axis in axes:
            others = [other for other in range(weight.ndim) if other != axis]
            if axis == 0:
                axis_sums[0][start : start + step] = part.sum(others)
            else:
                axis_sums[axis] += part.sum(others)
    return axis_sums


METHOD = Method(
    type="magnitude",
    title="Filter pruning by weight magnitude",
    description="Removes the coupled channels whose weights have the smallest norm, down to the budget.",
    paper="arXiv:1608.08710",
    options={
        "norm": {
            "type": "integer",
            "enum": [1, 2],
            "default": 2,
            "description": "Order of the norm over the coupled slices.",
        },
        **PLAN_OPTIONS,
    },
    config_type=MagnitudeConfig,
    score=scores,
    shape=plan_options,
)
