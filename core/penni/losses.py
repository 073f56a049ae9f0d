"""What a column is worth: how much the layer's squared error grows without it, as a share of what the layer says.

Where images have been seen, the others are solved anew for it, so that a column which they can say as well is worth little
however large its coefficients are (Hassibi, Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon",
1992, for all outputs of a column at once):

    loss  =  ‖coefficients of the column‖² / [(ZᵀZ)⁻¹]_column / ‖T‖²

Z are the maps of the live columns and T is what was wanted of the layer. Without images all maps count as independent and
of one power, which leaves the column's share of the weight's square. Shares compare across layers, whatever the scale of
their outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.penni.decomposition import SharedKernels

# Of the Gram matrix's mean diagonal.
_RIDGE = 1e-4


def weight_losses(shared: SharedKernels) -> Tensor:
    """float64 [C, d]: by the weights alone."""
    powers = shared.column_norms().square()
    return powers / powers.sum().clamp_min(torch.finfo(torch.float64).tiny)


def removal_losses(shared: SharedKernels, gram: Tensor, power: Tensor) -> Tensor:
    """float64 [C, d], zero for columns that are not live; by the weights alone where the maps say nothing.

    gram: ZᵀZ of all columns [C·d, C·d], channel-major, with one row and column more for a bias. power: ‖T‖².
    """
    live, powers = shared.live.flatten(), shared.column_norms().square().flatten()
    told = torch.cat([live, live.new_ones(len(gram) - len(live))]).to(gram.device)
    maps = gram[told][:, told]
    strength = _RIDGE * maps.diagonal().mean()
    # Also where there is no column, and the mean of nothing is no number.
    if not bool(strength > 0) or not bool(power > 0):
        return weight_losses(shared)
    maps.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(maps)
    if bool(failed.any()):
        return weight_losses(shared)
    freedom = torch.cholesky_inverse(factor).diagonal()[: int(live.sum())]
    losses = torch.zeros_like(powers)
    losses[live] = powers[live] / (freedom * power).to(powers.device)
    return losses.view(shared.pieces, shared.kernels)
