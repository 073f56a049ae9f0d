"""Random: which channels stay is drawn by lot.

Mittal, Bhardwaj, Khapra, Ravindran: Recovering from Random Pruning (arXiv 1801.10447) found that after fine-tuning a
random choice does nearly as well as most scores. It is the baseline that any score has to beat.

All groups give about the same share, because the scores of every group are drawn alike.
"""

from __future__ import annotations

import numpy as np

from core.analysis import ChannelAnalysis
from core.methods.method import Evidence, Method
from core.methods.options import PlanConfig
from core.network import Network


def scores(network: Network, analysis: ChannelAnalysis, config: PlanConfig, evidence: Evidence) -> np.ndarray:
    """float64 per component, uniform in [0, 1); the same for the same seed and network."""
    return np.random.default_rng(evidence.seed).random(analysis.components)


METHOD = Method(
    type="random",
    title="Random channels",
    description="Removes channels by lot (seeded), down to the budget: the baseline of every score.",
    paper="arXiv:1801.10447",
    options={},
    config_type=PlanConfig,
    score=scores,
)
