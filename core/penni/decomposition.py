"""Decomposition of one convolution into shared kernels.

A layer with O outputs, C inputs and k taps has O·C kernels, the rows of M [O·C, k]. The best d shared kernels are the
first d right singular vectors of M, uncentred: a mean that is taken off has to be stored as one more kernel and is
worth less than the next singular vector.

    W[o, c] = Σ_b coefficients[o, c, b] · basis[b]

The shared kernels have unit norm, so that coefficients compare across kernels and layers. A coefficient that is exactly
zero is pruned: the mask is in the zeros. A *column* (c, b) is one depthwise map, kernel b on input c.

A kernel may also lie over all input channels at once (`span`). What is shared then is a whole row [C·k] of the weight,
and the decomposition is the plain low-rank one, of which a 1×1 convolution has no other:

    W[o] = Σ_b coefficients[o, 0, b] · basis[b]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# Singular values below this share of the largest are rounding of float32.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SharedKernels:
    """One layer. coefficients: [O, C, d]; basis: [d, taps] with rows of unit norm; kernel: the spatial shape of the
    taps.

    span: the input channels that one kernel lies over. Where it is all of them, coefficients are [O, 1, d] and the
    basis is [d, C · taps], channel-major.
    """

    coefficients: Tensor
    basis: Tensor
    kernel: tuple[int, ...]
    span: int = 1

    @property
    def outputs(self) -> int:
        return self.coefficients.shape[0]

    @property
    def pieces(self) -> int:
        """How many kernels lie side by side over the inputs."""
        return self.coefficients.shape[1]

    @property
    def inputs(self) -> int:
        return self.pieces * self.span

    @property
    def kernels(self) -> int:
        return self.coefficients.shape[2]

    @property
    def taps(self) -> int:
        """Of one kernel."""
        return self.span * math.prod(self.kernel)

    @property
    def live(self) -> Tensor:
        """bool [C, d]: columns that some output reads."""
        return (self.coefficients != 0).any(dim=0)

    @property
    def nonzeros(self) -> int:
        return int((self.coefficients != 0).sum())

    def weight(self) -> Tensor:
        """The weight [O, C, *kernel] of the equal convolution."""
        return (self.coefficients @ self.basis).reshape(self.outputs, self.inputs, *self.kernel)

    def column_norms(self) -> Tensor:
        """float64 [C, d]: norm of each column's coefficients over the outputs."""
        return self.coefficients.double().norm(dim=0)

    def with_channels(self, kept: Sequence[np.ndarray | None]) -> SharedKernels:
        """Only these output and input channels; None, or nothing said, where all stay."""
        outputs, inputs = (None if index is None else torch.from_numpy(index) for index in (*kept, None, None)[:2])
        coefficients, basis, span = self.coefficients, self.basis, self.span
        if outputs is not None:
            coefficients = coefficients.index_select(0, outputs)
        if inputs is not None and span > 1:
            basis, span = basis.view(self.kernels, span, -1).index_select(1, inputs).flatten(1), len(inputs)
        elif inputs is not None:
            coefficients = coefficients.index_select(1, inputs)
        found = SharedKernels(coefficients, basis, self.kernel, span)
        return found if basis is self.basis else found.normalised()

    def with_used(self, used: Tensor) -> SharedKernels:
        """Zero where no weight [O, C, *kernel] is used. used: bool [O, C]."""
        if bool(used.all()):
            return self
        if self.span == 1:
            return self.with_columns(used[:, :, None])
        rows = self.with_columns(used.any(dim=1)[:, None, None])
        basis = self.basis.view(self.kernels, self.span, -1) * used.any(dim=0)[:, None]
        return replace(rows, basis=basis.flatten(1)).normalised()

    def with_columns(self, live: Tensor) -> SharedKernels:
        """Only these columns, bool [C, d], or only these coefficients, bool [O, C, d]."""
        return replace(self, coefficients=self.coefficients * live.to(self.coefficients.dtype))

    def normalised(self) -> SharedKernels:
        """The same weight with unit-norm kernels; a kernel of norm zero stays."""
        norms = self.basis.norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)
        return replace(self, coefficients=self.coefficients * norms, basis=self.basis / norms[:, None])


def decompose(weight: Tensor, kernels: int, span: int = 1) -> SharedKernels:
    """`weight` [O, C, *kernel] on its best `kernels` shared ones; with as many as taps it is exact. span: the input
    channels that one kernel lies over, 1 or all of them.

    The singular vectors are the eigenvectors of the taps × taps Gram matrix: one pass over the weight. They are
    orthonormal in float64, whatever rounding the Gram matrix has, so what it costs is a little of being the best.
    """
    outputs, inputs, *kernel = weight.shape
    matrix = weight.reshape(outputs * inputs // span, -1)
    rows = _directions(matrix) if span == 1 else _long_directions(matrix)
    basis = rows[:kernels].to(weight.dtype)
    coefficients = (basis @ matrix.T).T.view(outputs, inputs // span, -1)
    return SharedKernels(coefficients, basis, tuple(kernel), span)


def exact_rank(weight: Tensor) -> int:
    """The fewest kernels over all inputs that make `weight` [O, C, *kernel] to the rounding of its numbers."""
    matrix = weight.flatten(1).double()
    powers = torch.linalg.eigvalsh(matrix @ matrix.T)
    return max(1, int((powers > _ROUNDING**2 * powers.max()).sum()))


def kernels_for_energy(weight: Tensor, energy: float) -> int:
    """The fewest shared kernels that hold this share of the weight's squared norm; at least 1."""
    outputs, inputs, *_ = weight.shape
    matrix = weight.reshape(outputs * inputs, -1).double()
    powers = torch.linalg.eigvalsh(matrix.T @ matrix).flip(0).clamp(min=0)
    shares = powers.cumsum(0) / powers.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return min(len(powers), 1 + int((shares < energy - 1e-12).sum()))


def _directions(matrix: Tensor) -> Tensor:
    """Right singular vectors as rows, the strongest first; a sign that does not depend on the solver."""
    _, vectors = torch.linalg.eigh(_gram(matrix).double())
    rows = vectors.T.flip(0)
    strongest = rows.abs().argmax(dim=1, keepdim=True)
    return rows * rows.gather(1, strongest).sign()


def _long_directions(matrix: Tensor) -> Tensor:
    """Right singular vectors of rows that may be longer than there are of them, and then as many as rows."""
    if len(matrix) > matrix.shape[1]:
        return _directions(matrix)
    matrix = matrix.double()
    left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)
    rows = left.T @ matrix
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    strongest = rows.abs().argmax(dim=1, keepdim=True)
    return rows * rows.gather(1, strongest).sign()


def _gram(matrix: Tensor) -> Tensor:
    """matrixᵀ · matrix of [n, taps], two rows at a time: products of so few columns leave most of a vector unit
    idle."""
    rows, taps = matrix.shape
    pairs = matrix[: rows - rows % 2].reshape(-1, 2 * taps)
    (even, _), (_, odd) = (part.split(taps, dim=1) for part in (pairs.T @ pairs).split(taps))
    last = matrix[rows - rows % 2 :]
    return even + odd + last.T @ last
