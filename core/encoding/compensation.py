"""Compensation: weights take their shared values one input after the other, and the rest makes up for what each loses.

Rounding every weight by itself ignores that the inputs of a layer are correlated. Here the layers are met in order of
execution (`core.recovery.refit`): the weights W that best say what the original said, from the inputs X that the layer now
gets, are rounded column by column, and what a column's rounding adds to the layer's outputs is taken off again by the
columns that are still free, in the least-squares sense:

    e = (w_j − q_j) / U_jj        w_l ← w_l − e·U_jl  for l > j        UᵀU = (XᵀX + ridge)⁻¹, U upper triangular

Source: Frantar et al., "GPTQ" (arXiv 2210.17323), which is the surgeon of Hassibi and Stork for columns in a fixed order,
here that of falling energy. As the targets are those of the network before, layers also make up for the layers in front of
them. Which interval belongs to which value is the quantiser's, its price per bit included; pruned weights stay zero, and the
others make up for them, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from core.encoding.kernels import Choice, Shared
from core.encoding.quantized import QuantizedTensor
from core.encoding.quantizers import Levels
from core.network import Network
from core.recovery.least_squares import NormalEquations, Solution, damped, normal_equations
from core.recovery.patches import MatrixLayer
from core.recovery.refit import refit

# Of the Gram matrix's mean diagonal: what holds directions that the images say nothing about.
_RIDGE = 0.1
# Columns whose errors are handed on to all later ones together.
_BLOCK = 64


def compensated(
    network: Network, inputs: Tensor, choices: Sequence[Choice], seed: int, device: torch.device | str = "cpu"
) -> Shared:
    """The kernels on the shared values chosen for them, rounded so that the network says what it says now; biases help.

    inputs: of the network, [n, …]. Values that fall to either neighbour by chance (PWS), and kernels that are not read by
    one convolution or linear layer alone, are rounded one by one.
    """
    roundings = {
        kernel.name: _Rounding(kernel.survivors, levels)
        for group, levels in choices
        if levels is not None and levels.thresholds is not None
        for kernel in group.kernels
    }
    solvers = dict.fromkeys(network.tensors, _leave) | roundings
    after = refit(network, network, inputs, kept={}, device=device, solvers=solvers).network if roundings else network
    found: dict[str, QuantizedTensor] = {}
    for index, (group, levels) in enumerate(choices):
        decided = group.indices(levels, seed + index)
        for place, kernel in enumerate(group.kernels):
            rounding = roundings.get(kernel.name)
            if rounding is not None and rounding.indices is not None:
                decided[place] = rounding.indices
        found.update(group.placed(levels, decided))
    return Shared.of(after, found)


def _leave(*_: object) -> None:
    """The solver of a layer that is rounded without looking at the others."""


class _Rounding:
    """The solver of one layer. indices: afterwards its survivors' values; None where it was not met or has no solution."""

    def __init__(self, survivors: np.ndarray, levels: Levels) -> None:
        self._survivors, self._levels = survivors, levels
        self.indices: np.ndarray | None = None

    def __call__(
        self, layer: MatrixLayer, inputs: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Solution | None:
        normal = normal_equations(layer, inputs, target, weight, bias)
        start = layer.matrix(weight).double()
        columns = start.shape[2]
        if bias is not None:
            start = torch.cat([start, bias.double().view(*start.shape[:2], 1)], dim=2)
        solved = _solved(normal, start, columns)
        if solved is None:
            return None
        free, upper, order = solved
        alive = torch.from_numpy(self._survivors).to(weight.device).reshape(*start.shape[:2], columns)
        values = torch.from_numpy(self._levels.codebook.astype(np.float32)).to(weight.device).double()
        thresholds = torch.from_numpy(self._levels.thresholds).to(weight.device)
        taken = _round(free, alive[:, :, order[:columns]], upper, values, thresholds)
        indices = taken[:, :, torch.argsort(order[:columns])]
        rounded = torch.where(alive, values[indices], 0.0)
        self.indices = indices.reshape(self._survivors.shape).cpu().numpy()[self._survivors]
        if bias is not None:
            rounded = torch.cat([rounded, free[:, :, columns:]], dim=2)
            bias = free[:, :, columns].flatten().to(bias.dtype)
        after = normal.error((rounded - start).transpose(1, 2))
        errors = normal.relative(normal.residual), normal.relative(after)
        return Solution(rounded[:, :, :columns].reshape(weight.shape).to(weight.dtype), bias, errors)


def _solved(normal: NormalEquations, start: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The least-squares weights in the order in which columns are rounded, U in that order, and the order; None where
    numbers are not finite. A bias, the column behind `columns`, is the last and is never rounded."""
    gram = damped(normal.gram, _RIDGE)
    energy = gram.diagonal(dim1=1, dim2=2).sum(dim=0)
    order = torch.argsort(energy[:columns], descending=True, stable=True)
    order = torch.cat([order, torch.arange(columns, len(energy), device=order.device)])
    gram = gram[:, order][:, :, order]
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    free = start[:, :, order] + torch.cholesky_solve(normal.cross[:, order], factor).transpose(1, 2)
    whole = not bool(failed.any()) and bool(free.isfinite().all()) and bool(upper.isfinite().all())
    return (free, upper, order) if whole else None


def _round(free: Tensor, alive: Tensor, upper: Tensor, values: Tensor, thresholds: Tensor) -> Tensor:
    """Which of `values` each weight takes. free: [groups, outputs, columns and perhaps a bias]; what is left is in it then."""
    taken = torch.zeros(alive.shape, dtype=torch.int64, device=free.device)
    columns = alive.shape[2]
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        errors = free.new_zeros((*free.shape[:2], last - first))
        for column in range(first, last):
            own = free[:, :, column].contiguous()
            index = torch.bucketize(own, thresholds, right=True)
            taken[:, :, column] = index
            error = (own - torch.where(alive[:, :, column], values[index], 0.0)) / upper[:, column, column, None]
            errors[:, :, column - first] = error
            free[:, :, column + 1 : last] -= error[:, :, None] * upper[:, None, column, column + 1 : last]
        free[:, :, last:] -= errors @ upper[:, first:last, last:]
    return taken
