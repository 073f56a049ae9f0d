"""One layer's least-squares problem: the weights that best say, from its inputs, what was wanted of it.

    W  =  argmin ‖ X Wᵀ − T ‖²  +  λ ‖ W − W₀ ‖²

λ pulls towards the weights W₀ that are there and not towards zero, so directions that the images say nothing about stay as
they are. It is chosen from `RIDGES` on images that the fit did not see, and a layer that no λ improves there keeps its
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.recovery.patches import MatrixLayer

# In units of the Gram matrix's mean diagonal.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Every fourth image judges λ.
_JUDGES = 4
# Elements of one block of rows, and the most rows per column of a layer's matrix: more would only cost time.
_BLOCK_ELEMENTS = 2**23
_ROWS_PER_COLUMN = 64
_MIN_ROWS = 2**16


@dataclass(frozen=True)
class Solution:
    """errors: relative to the target, on the judging images, before and after."""

    weight: Tensor
    bias: Tensor | None
    errors: tuple[float, float]


# (layer, inputs, target, weight, bias) → the weights to take, or None to leave them.
Solver = Callable[[MatrixLayer, Tensor, Tensor, Tensor, "Tensor | None"], "Solution | None"]


@dataclass(frozen=True)
class NormalEquations:
    """The normal equations of some images, per group, in float64: XᵀX, Xᵀ(T − XW₀ᵀ) and ‖T − XW₀ᵀ‖², ‖T‖²."""

    gram: Tensor
    cross: Tensor
    residual: Tensor
    power: Tensor

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.gram + other.gram,
            self.cross + other.cross,
            self.residual + other.residual,
            self.power + other.power,
        )

    def error(self, change: Tensor) -> Tensor:
        """‖T − X(W₀ + change)ᵀ‖² with change [groups, columns, O/groups]."""
        quadratic = (change * (self.gram @ change)).sum()
        return self.residual - 2 * (change * self.cross).sum() + quadratic

    def relative(self, square: Tensor) -> float:
        """A squared error as a share of the target, both as norms."""
        return float((square.clamp(min=0) / (self.power + torch.finfo(torch.float64).tiny)).sqrt())


def most_rows(width: int) -> int:
    """How many windows of a layer with a matrix this wide its normal equations look at."""
    return max(_MIN_ROWS, _ROWS_PER_COLUMN * width)


def solve(layer: MatrixLayer, inputs: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None) -> Solution | None:
    """The best change of the weights, with λ chosen on the judging images; None where none is an improvement."""
    fit, judge = judged(layer, inputs, target, weight, bias)
    best_error, best_ridge = judge.residual, None
    for ridge in RIDGES:
        change = _change(fit, ridge)
        error = judge.error(change) if change is not None else None
        if error is not None and error < best_error:
            best_error, best_ridge = error, ridge
    if best_ridge is None:
        return None
    change = _change(fit + judge, best_ridge)
    if change is None:
        return None
    errors = judge.relative(judge.residual), judge.relative(best_error)
    change = change.transpose(1, 2)
    if bias is not None:
        change, shift = change[..., :-1], change[..., -1]
        bias = (bias.double() + shift.flatten()).to(bias.dtype)
    weight = (weight.double() + change.reshape(weight.shape)).to(weight.dtype)
    return Solution(weight, bias, errors) if bool(weight.isfinite().all()) else None


def judged(
    layer: MatrixLayer, inputs: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[NormalEquations, NormalEquations]:
    """The equations of the images that are fitted, and of those that judge λ."""
    judges = torch.arange(len(inputs), device=inputs.device) % _JUDGES == _JUDGES - 1
    fit, judge = (normal_equations(layer, inputs[part], target[part], weight, bias) for part in (~judges, judges))
    return fit, judge


def _change(normal: NormalEquations, ridge: float) -> Tensor | None:
    factor, failed = torch.linalg.cholesky_ex(damped(normal.gram, ridge))
    return None if bool(failed.any()) else torch.cholesky_solve(normal.cross, factor)


def damped(gram: Tensor, ridge: float) -> Tensor:
    """Gram matrices with `ridge` times their mean diagonal on it, so that they can be inverted."""
    gram = gram.clone()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal.mean(dim=1, keepdim=True)
    diagonal += torch.where(strength > 0, strength, 1.0)
    return gram


def normal_equations(
    layer: MatrixLayer, inputs: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None
) -> NormalEquations:
    matrix = layer.matrix(weight)
    groups, outputs, columns = matrix.shape
    width = columns + (bias is not None)
    options = {"dtype": torch.float64, "device": inputs.device}
    gram, cross = torch.zeros(groups, width, width, **options), torch.zeros(groups, width, outputs, **options)
    residual, power = torch.zeros((), **options), torch.zeros((), **options)
    per_image = max(1, target[:1].numel() // (groups * outputs))
    size = max(1, _BLOCK_ELEMENTS // max(1, per_image * groups * width))
    # Neighbouring positions say much the same, so of many only some are taken, spread evenly over every image.
    thinning = max(1, len(inputs) * per_image // most_rows(width))
    for images, goals in zip(inputs.split(size), target.split(size), strict=True):
        rows, goal = layer.rows(images)[:, ::thinning], layer.targets(goals)[:, ::thinning]
        power += goal.double().square().sum()
        missing = goal - rows @ matrix.transpose(1, 2)
        if bias is not None:
            missing = missing - bias.view(groups, 1, outputs)
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
        gram += rows.transpose(1, 2) @ rows
        cross += rows.transpose(1, 2) @ missing
        residual += missing.double().square().sum()
    return NormalEquations(gram, cross, residual, power)
