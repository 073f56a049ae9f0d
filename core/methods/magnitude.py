"""Magnitude: channels whose coupled weights are small go first.

Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets (arXiv 1608.08710) scores a filter by the
norm of its weights. Channels that residual sums and concatenations tie together live or die together, so the norm is
taken over all slices of the coupled component, as in Fang et al., DepGraph (arXiv 2301.12900): the filters that make
the channel and the slices that read it.

Only weights with at least two axes count. Biases, batch-norm scales and statistics have other units: batch-norm divides
by the channel's own deviation, so its scale says how loud the channel is, not how much its weights do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.analysis import ChannelAnalysis
from core.methods.method import Evidence, Method
from core.methods.options import PlanConfig
from core.methods.slices import component_sums, matrices, slice_powers
from core.network import Network


@dataclass(frozen=True)
class MagnitudeConfig(PlanConfig):
    """norm: 1 or 2."""

    norm: int = 2


def scores(network: Network, analysis: ChannelAnalysis, config: MagnitudeConfig, evidence: Evidence) -> np.ndarray:
    """float64 per component: the norm of all weight slices that belong to it. Deterministic; the seed has no part."""
    return weight_norms(network, analysis, config.norm)


def weight_norms(network: Network, analysis: ChannelAnalysis, norm: int) -> np.ndarray:
    """float64 per component: (Σ|w|^norm)^(1/norm) over its slices of all weights with at least two axes."""
    sums = component_sums(network, analysis, matrices, lambda tensor, axes: slice_powers(tensor, axes, norm))
    return sums ** (1 / norm)


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
    },
    config_type=MagnitudeConfig,
    score=scores,
)
