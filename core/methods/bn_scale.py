"""Batch-norm scale: channels that batch normalisation scales down go first.

Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming (arXiv 1708.06519)
ranks a channel by |γ| of the batch-norm that follows it; after normalisation, |γ| is the deviation that the channel has.
Where residual sums and concatenations tie channels together, the norm of all their scales decides.

Channels that no batch-norm scales have no score of this kind. Their groups are told apart by the L2 norm of their
weights (`core.methods.magnitude`); scores are only compared after each group is divided by its mean, so both kinds can
stand side by side.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from core.analysis import ChannelAnalysis
from core.analysis.schema import bind, operator_name
from core.methods.magnitude import weight_norms
from core.methods.method import Evidence, Method
from core.methods.options import PlanConfig
from core.methods.slices import component_sums
from core.network import Network


def scores(network: Network, analysis: ChannelAnalysis, config: PlanConfig, evidence: Evidence) -> np.ndarray:
    """float64 per component: √Σγ² over the batch-norm scales of its channels. Deterministic; the seed has no part."""
    scales = {id(network.tensors[name]) for name in batch_norm_scales(network)}

    def squares(tensor: Tensor, axes: object) -> dict[int, Tensor]:
        return {0: tensor.double().square()}

    found = np.sqrt(component_sums(network, analysis, lambda tensor: id(tensor) in scales, squares))
    unscaled = [group for group in analysis.groups if not found[group.components].any()]
    if unscaled:
        norms = weight_norms(network, analysis, 2)
        for group in unscaled:
            found[group.components] = norms[group.components]
    return found


def batch_norm_scales(network: Network) -> list[str]:
    """The tensors that batch-norms multiply by, in execution order."""
    names = []
    for node in network.graph.nodes:
        if node.op == "call_function" and "batch_norm" in operator_name(node.target):
            weight = bind(node).get("weight")
            if weight is not None and weight.op == "get_attr":
                names.append(weight.target)
    return names


METHOD = Method(
    type="bn_scale",
    title="Network slimming",
    description="Removes the channels with the smallest batch-norm scales, down to the budget.",
    paper="arXiv:1708.06519",
    options={},
    config_type=PlanConfig,
    score=scores,
)
