"""Magnitude: channels whose coupled weights are small go first.

Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets (arXiv 1608.08710) scores a filter by the
norm of its weights. Channels that residual sums and concatenations tie together live or die together, so the norm is
taken over all slices of the coupled component, as in Fang et al., DepGraph (arXiv 2301.12900).

Only weights with at least two axes count: filters that make a channel and slices that read it. Batch-norm scales and
statistics have other units, and one of them per channel would say more about the data's scale than about the channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.analysis import ChannelAnalysis
from core.methods.options import option_error, whole_number
from core.network import Network
from core.planning import PlanOptions

TYPE = "magnitude"
TITLE = "Filter pruning by weight magnitude"
DESCRIPTION = "Removes the coupled channels whose weights have the smallest norm, down to the budget."
PAPER = "arXiv:1608.08710"
OPTIONS_SCHEMA: dict[str, Any] = {
    "norm": {
        "type": "integer",
        "enum": [1, 2],
        "default": 2,
        "description": "order of the norm over the coupled slices",
    },
    "min_channels": {
        "type": "integer",
        "minimum": 1,
        "description": "fewest channels of a layer; default max(4, 10 %)",
    },
    "round_to": {
        "type": "integer",
        "minimum": 1,
        "maximum": 64,
        "default": 1,
        "description": "widths fall in multiples of this",
    },
}


@dataclass(frozen=True)
class MagnitudeConfig:
    """norm: 1 or 2. min_channels, round_to: see `PlanOptions`."""

    norm: int = 2
    min_channels: int | None = None
    round_to: int = 1


def config(options: Mapping[str, Any]) -> MagnitudeConfig:
    """Checked options. Raises EngineError naming the option."""
    unknown = sorted(set(options) - set(OPTIONS_SCHEMA))
    if unknown:
        raise option_error(unknown[0], f"unknown; magnitude has {', '.join(OPTIONS_SCHEMA)}")
    norm = whole_number(options, "norm", default=2, low=1, high=2)
    smallest = whole_number(options, "min_channels", default=None, low=1, high=None)
    return MagnitudeConfig(norm, smallest, whole_number(options, "round_to", default=1, low=1, high=64))


def plan_options(config: MagnitudeConfig) -> PlanOptions:
    return PlanOptions(min_channels=config.min_channels, round_to=config.round_to)


def scores(network: Network, analysis: ChannelAnalysis, config: MagnitudeConfig, seed: int) -> np.ndarray:
    """float64 per component: the norm of all weight slices that belong to it. Deterministic; `seed` has no part."""
    total = np.zeros(analysis.components)
    powers: dict[str, torch.Tensor] = {}
    for slices in analysis.slices:
        weight = network.tensors[slices.tensor]
        if weight.ndim < 2:
            continue
        if slices.tensor not in powers:
            powers[slices.tensor] = weight.detach().abs().double() ** config.norm
        axes = [axis for axis in range(weight.ndim) if axis != slices.axis]
        per_slice = powers[slices.tensor].sum(dim=axes).numpy()
        labelled = slices.component >= 0
        total += np.bincount(slices.component[labelled], weights=per_slice[labelled], minlength=analysis.components)
    return total ** (1 / config.norm)
