"""What a column is worth: how much the layer's squared error grows without it, as a share of what the layer says.

Where images have been seen, the others are solved anew for it, so that a column which they can say as well is worth
little however large its coefficients are (Hassibi, Stork, "Second Order Derivatives for Network Pruning: Optimal Brain
Surgeon", 1992, for all outputs of a column at once):

    loss  =  ‖coefficients of the column‖² / [(ZᵀZ + λ·diagonal)⁻¹]_column / ‖T‖²

Z are the maps of the live columns and T is what was wanted of the layer. Where the layer has a bias, which says every
constant for nothing, both are taken without their means. Without images all maps count as independent and of one power,
which leaves the column's share of the weight's square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.penni.decomposition import SharedKernels

# λ: of each map's own power, so that none outweighs another.
_RIDGE = 1e-4
# A map of less than this share of the loudest one's power is constant, but for rounding.
_SILENT = 1e-12


def weight_losses(shared: SharedKernels) -> Tensor:
    """float64 [C, d], of sum 1: by the weights alone."""
    powers = shared.column_norms().square()
    return powers / powers.sum().clamp_min(torch.finfo(torch.float64).tiny)


def removal_losses(shared: SharedKernels, gram: Tensor, power: Tensor) -> Tensor | None:
    """float64 [C, d], zero for columns that are not live or say nothing; None where they cannot be told.

    gram: ZᵀZ of all columns [C·d, C·d], channel-major. power: ‖T‖².
    """
    powers, diagonal = shared.column_norms().square().flatten(), gram.diagonal().to("cpu")
    losses = torch.zeros_like(powers)
    speaking = shared.live.flatten() & (diagonal > _SILENT * diagonal.amax())
    if bool(speaking.any()) and bool(power > 0):
        chosen = speaking.to(gram.device)
        maps = gram[chosen][:, chosen]
        maps.diagonal().mul_(1 + _RIDGE)
        factor, failed = torch.linalg.cholesky_ex(maps)
        losses[speaking] = powers[speaking] / (torch.cholesky_inverse(factor).diagonal() * power).to(powers.device)
        if bool(failed.any()) or not bool(losses.isfinite().all()):
            return None
    return losses.view(shared.pieces, shared.kernels)
