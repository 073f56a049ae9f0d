"""Closed-form fit of shared kernels: coefficients and kernels solved in turn, so that a layer says what it said.

With the Gram matrix G = XᵀX of a layer's inputs (the windows under its kernel) and the cross moments XᵀT, both unknowns
of T ≈ X·(A ∘ B) have a closed form without another look at the images:

    coefficients given kernels   one ridge problem over the live columns, for all outputs at once
    kernels given coefficients   one ridge problem over d · taps unknowns

and a few alternating sweeps (ALS) find what singular vectors of the weight alone miss by far. Kernels that lie over all
inputs need no turns: the best matrix of a rank is the ridge solution on the leading directions of what it says
(reduced-rank regression: Izenman, Journal of Multivariate Analysis 5, 1975). Inputs come from the
already compressed prefix, targets from the original in front of its batch-norm (`core.recovery.refit`). The ridge pulls
towards the coefficients that were there, and is chosen on images that the fit did not see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.penni.decomposition import SharedKernels
from core.penni.losses import removal_losses
from core.recovery.least_squares import NormalEquations, Solution, judged
from core.recovery.patches import MatrixLayer

# In units of the mean diagonal.
RIDGES = (1e-4, 1e-2)


class KernelSolver:
    """Solves one layer as shared kernels (a `Solver` of `core.recovery.least_squares`); `shared` is the state, before
    and after.

    Coefficients that are zero stay zero. sweeps: how often the kernels are solved too. judging: say afterwards, in
    `losses`, what each column is worth (`core.penni.losses`); None where that cannot be told.
    """

    def __init__(self, shared: SharedKernels, sweeps: int, *, judging: bool = False) -> None:
        self.shared = shared
        self.losses: Tensor | None = None
        self._sweeps = sweeps
        self._judging = judging

    def __call__(
        self, layer: MatrixLayer, inputs: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Solution | None:
        nothing = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        fit, judge = (_Moments.of(one, bias is not None) for one in judged(layer, inputs, target, *nothing))
        options = {"dtype": torch.float64, "device": inputs.device}
        start = _Factors(
            self.shared.coefficients.to(**options),
            self.shared.basis.to(**options),
            None if bias is None else bias.to(**options),
        )
        both = fit + judge
        solution = self._solved(fit, judge, both, start, weight, bias)
        if self._judging:
            spread = both.without_means()
            maps, _ = _of_maps(spread, self.shared.basis.to(**options))
            self.losses = removal_losses(self.shared, maps, spread.power)
        return solution

    def _solved(
        self, fit: _Moments, judge: _Moments, both: _Moments, start: _Factors, weight: Tensor, bias: Tensor | None
    ) -> Solution | None:
        """Put the best factors into `shared`; None where no strength improves what is there."""
        before = judge.error(start)
        best_error, best_ridge = before, None
        for ridge in RIDGES:
            found = _alternate(fit, start, self._sweeps, ridge)
            error = judge.error(found) if found is not None else None
            if error is not None and error < best_error:
                best_error, best_ridge = error, ridge
        if best_ridge is None:
            return None
        found = _alternate(both, start, self._sweeps, best_ridge)
        if found is None:
            return None
        dtype, device = self.shared.basis.dtype, self.shared.basis.device
        shared = replace(
            self.shared, coefficients=found.coefficients.to(device, dtype), basis=found.basis.to(device, dtype)
        ).normalised()
        if not bool(shared.coefficients.isfinite().all()):
            return None
        self.shared = shared
        power = judge.power.clamp_min(torch.finfo(torch.float64).tiny)
        errors = tuple(float((error.clamp(min=0) / power).sqrt()) for error in (before, best_error))
        return Solution(
            shared.weight().to(weight.device, weight.dtype),
            None if bias is None else found.bias.to(bias.dtype),
            errors,
        )


@dataclass(frozen=True)
class _Factors:
    """coefficients [O, C, d], basis [d, taps], bias [O] or None, float64."""

    coefficients: Tensor
    basis: Tensor
    bias: Tensor | None

    def matrix(self) -> Tensor:
        """[C·taps (+ 1), O]: what multiplies a row of inputs."""
        weight = (self.coefficients @ self.basis).flatten(1).T
        return weight if self.bias is None else torch.cat([weight, self.bias[None]])


@dataclass(frozen=True)
class _Moments:
    """gram: [C·taps (+ 1), C·taps (+ 1)], the last row a bias; cross: [C·taps (+ 1), O]; power: ‖T‖²."""

    gram: Tensor
    cross: Tensor
    power: Tensor
    has_bias: bool

    @staticmethod
    def of(equations: NormalEquations, has_bias: bool) -> _Moments:
        return _Moments(equations.gram[0], equations.cross[0], equations.power, has_bias)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.gram + other.gram, self.cross + other.cross, self.power + other.power, self.has_bias)

    def without_means(self) -> _Moments:
        """Of what a bias does not say: windows and outputs with their means taken off. The same where there is none."""
        if not self.has_bias:
            return self
        sums, count, totals = self.gram[-1:, :-1], self.gram[-1, -1], self.cross[-1:]
        return _Moments(
            self.gram[:-1, :-1] - sums.T @ sums / count,
            self.cross[:-1] - sums.T @ totals / count,
            self.power - totals.square().sum() / count,
            has_bias=False,
        )

    def error(self, factors: _Factors) -> Tensor:
        """‖T − X·matrix‖²."""
        matrix = factors.matrix()
        return self.power - 2 * (matrix * self.cross).sum() + (matrix * (self.gram @ matrix)).sum()


def _alternate(moments: _Moments, factors: _Factors, sweeps: int, ridge: float) -> _Factors | None:
    if factors.coefficients.shape[1] == 1:
        return _reduced_rank(moments, factors, ridge)
    found = _coefficients(moments, factors, ridge)
    for _ in range(sweeps):
        found = _basis(moments, found, ridge) if found is not None else None
        found = _coefficients(moments, found, ridge) if found is not None else None
    return found


def _coefficients(moments: _Moments, factors: _Factors, ridge: float) -> _Factors | None:
    """The best coefficients and bias for these kernels. Where single ones are zero, one problem per output."""
    outputs, inputs, kernels = factors.coefficients.shape
    maps, cross = _of_maps(moments, factors.basis)
    current = factors.coefficients.flatten(1).T
    if factors.bias is not None:
        current = torch.cat([current, factors.bias[None]])
    support = current != 0
    if moments.has_bias:
        support[-1] = True
    result = torch.zeros_like(current)
    rows = support.any(dim=1)
    if bool((support == rows[:, None]).all()):
        solved = _ridge(maps[rows][:, rows], cross[rows], current[rows], ridge)
        if solved is None:
            return None
        result[rows] = solved
    else:
        for output in range(outputs):
            own = support[:, output]
            solved = _ridge(maps[own][:, own], cross[own, output, None], current[own, output, None], ridge)
            if solved is None:
                return None
            result[own, output] = solved[:, 0]
    bias = result[-1] if moments.has_bias else None
    return _Factors(result[: inputs * kernels].T.reshape(outputs, inputs, kernels), factors.basis, bias)


def _of_maps(moments: _Moments, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix [C·d (+ 1), C·d (+ 1)] and the cross moments [C·d (+ 1), O] of the maps of a basis [d, taps], from
    those of the windows: every axis of taps goes through the kernels."""
    taps, outputs = basis.shape[1], moments.cross.shape[1]
    windows = len(moments.gram) - moments.has_bias
    inputs = windows // taps
    through = torch.einsum("bi,xci->xcb", basis, moments.gram[:, :windows].view(-1, inputs, taps)).flatten(1)
    maps = torch.einsum("bi,ciy->cby", basis, through[:windows].view(inputs, taps, -1)).flatten(0, 1)
    cross = torch.einsum("bi,cio->cbo", basis, moments.cross[:windows].view(inputs, taps, outputs)).flatten(0, 1)
    if moments.has_bias:
        sums = through[windows:]
        maps = torch.cat([torch.cat([maps, sums.T], 1), torch.cat([sums, moments.gram[-1:, -1:]], 1)])
        cross = torch.cat([cross, moments.cross[-1:]])
    return maps, cross


def _basis(moments: _Moments, factors: _Factors, ridge: float) -> _Factors | None:
    """The best kernels for these coefficients, of unit norm again."""
    outputs, inputs, kernels = factors.coefficients.shape
    taps = factors.basis.shape[1]
    windows = inputs * taps
    flat = factors.coefficients.flatten(1)
    together = (flat.T @ flat).view(inputs, kernels, inputs, kernels)
    gram = moments.gram[:windows, :windows].reshape(inputs, taps, inputs, taps)
    normal = together.permute(1, 3, 0, 2).flatten(2).flatten(0, 1) @ gram.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    normal = normal.view(kernels, kernels, taps, taps).permute(0, 2, 1, 3).reshape(kernels * taps, -1)
    wanted = moments.cross[:windows]
    if factors.bias is not None:
        wanted = wanted - moments.gram[:windows, -1:] * factors.bias
    cross = torch.einsum("ocb,cio->bi", factors.coefficients, wanted.view(inputs, taps, outputs)).reshape(-1, 1)
    solved = _ridge(normal, cross, factors.basis.reshape(-1, 1), ridge)
    if solved is None:
        return None
    shared = SharedKernels(factors.coefficients, solved.view(kernels, taps), (taps,)).normalised()
    return _Factors(shared.coefficients, shared.basis, factors.bias)


def _reduced_rank(moments: _Moments, factors: _Factors, ridge: float) -> _Factors | None:
    """The best factors of as many kernels as are live, each over all inputs; outputs without coefficients stay zero."""
    nonzero = factors.coefficients[:, 0] != 0
    live, rows = nonzero.any(dim=0).nonzero()[:, 0], nonzero.any(dim=1)
    start = (factors.coefficients[:, 0] @ factors.basis).T
    # A bias makes up for the means afterwards.
    spread, bias = moments.without_means(), None
    gram, cross = spread.gram, spread.cross
    solved = _ridge(gram, cross[:, rows], start[:, rows], ridge)
    if solved is None:
        return None
    said = solved.T @ (gram @ solved + _strength(gram, ridge) * solved)
    directions = torch.linalg.eigh((said + said.T) / 2).eigenvectors.flip(1)[:, : len(live)]
    live = live[: directions.shape[1]]
    coefficients, basis = torch.zeros_like(factors.coefficients), torch.zeros_like(factors.basis)
    coefficients[:, 0][rows.nonzero(), live] = directions
    basis[live] = directions.T @ solved.T
    if moments.has_bias:
        sums, count, totals = moments.gram[-1:, :-1], moments.gram[-1, -1], moments.cross[-1:]
        bias = ((totals - sums @ (coefficients[:, 0] @ basis).T) / count)[0]
    return _Factors(coefficients, basis, bias)


def _strength(gram: Tensor, ridge: float) -> Tensor:
    """λ, in units of the mean diagonal."""
    strength = ridge * gram.diagonal().mean() if len(gram) else gram.sum()
    return torch.where(strength > 0, strength, 1.0)


def _ridge(gram: Tensor, cross: Tensor, start: Tensor, ridge: float) -> Tensor | None:
    """argmin ‖…‖² + λ‖· − start‖²; None where the matrix is not positive definite."""
    strength = _strength(gram, ridge)
    gram = gram.clone()
    residual = cross - gram @ start
    gram.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(gram)
    return None if bool(failed.any()) else start + torch.cholesky_solve(residual, factor)
