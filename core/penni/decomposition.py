"""Decomposition of one convolution into shared kernels.

A layer with O outputs, C inputs and k taps has O·C kernels, the rows of M [O·C, k]. The best d shared kernels are the
first d right singular vectors of M, uncentred: a mean that is taken off has to be stored as one more kernel and is
worth less than the next singular vector.

    W[o, c] = Σ_b coefficients[o, c, b] · basis[b]

The shared kernels have unit norm, so that coefficients compare across kernels and layers. A coefficient that is exactly
zero is pruned: the mask is in the zeros. A *column* (c, b) is one depthwise map, kernel b on input c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SharedKernels:
    """One layer. coefficients: [O, C, d]; basis: [d, taps] with rows of unit norm; kernel: the spatial shape of the
    taps."""

    coefficients: Tensor
    basis: Tensor
    kernel: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return self.coefficients.shape[0]

    @property
    def inputs(self) -> int:
        return self.coefficients.shape[1]

    @property
    def kernels(self) -> int:
        return self.coefficients.shape[2]

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

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
        coefficients = self.coefficients
        for axis, index in enumerate(kept[:2]):
            if index is not None:
                coefficients = coefficients.index_select(axis, torch.from_numpy(index))
        return SharedKernels(coefficients, self.basis, self.kernel)

    def with_columns(self, live: Tensor) -> SharedKernels:
        """Only these columns, bool [C, d], or only these coefficients, bool [O, C, d]."""
        return SharedKernels(self.coefficients * live.to(self.coefficients.dtype), self.basis, self.kernel)

    def normalised(self) -> SharedKernels:
        """The same weight with unit-norm kernels; a kernel of norm zero stays."""
        norms = self.basis.norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)
        return SharedKernels(self.coefficients * norms, self.basis / norms[:, None], self.kernel)


def decompose(weight: Tensor, kernels: int) -> SharedKernels:
    """`weight` [O, C, *kernel] on its best `kernels` shared ones; with as many as taps it is exact.

    The singular vectors are the eigenvectors of the taps × taps Gram matrix: one pass over the weight. They are
    orthonormal in float64, whatever rounding the Gram matrix has, so what it costs is a little of being the best.
    """
    outputs, inputs, *kernel = weight.shape
    matrix = weight.reshape(outputs * inputs, -1)
    basis = _directions(matrix)[:kernels].to(weight.dtype)
    coefficients = (basis @ matrix.T).T.view(outputs, inputs, -1)
    return SharedKernels(coefficients, basis, tuple(kernel))


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


def _gram(matrix: Tensor) -> Tensor:
    """matrixᵀ · matrix of [n, taps], two rows at a time: products of so few columns leave most of a vector unit
    idle."""
    rows, taps = matrix.shape
    pairs = matrix[: rows - rows % 2].reshape(-1, 2 * taps)
    (even, _), (_, odd) = (part.split(taps, dim=1) for part in (pairs.T @ pairs).split(taps))
    last = matrix[rows - rows % 2 :]
    return even + odd + last.T @ last
