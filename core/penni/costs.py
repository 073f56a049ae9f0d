"""What a layer costs in each of its forms, from counts alone.

The paper's count (`sparse`) charges stage 2 by its nonzero coefficients: a runtime that makes use of single zeros. The
dense counts are what an ordinary runtime executes:

    two stages   columns · (taps + O) per output position        d · taps + O · columns parameters
    dense        O · live inputs · taps                          the same

A low-rank layer is two stages whose d kernels have C · taps taps each, one column per kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.penni.decomposition import SharedKernels


@dataclass(frozen=True)
class LayerCounts:
    """params: weights, without the bias. macs: of one image."""

    params: int
    macs: int


def dense_counts(outputs: int, inputs: int, taps: int, positions: int) -> LayerCounts:
    """An ordinary convolution over `inputs` channels at `positions` output positions."""
    params = outputs * inputs * taps
    return LayerCounts(params, positions * params)


def two_stage_counts(outputs: int, columns: int, kernels: int, taps: int, positions: int) -> LayerCounts:
    """Depthwise maps of `columns` (channel, kernel) pairs from `kernels` shared kernels, then a 1×1 convolution."""
    return LayerCounts(kernels * taps + outputs * columns, positions * columns * (taps + outputs))


def sparse_counts(shared: SharedKernels, positions: int) -> LayerCounts:
    """The paper's count of a layer: nnz(A) + d·taps parameters, positions · (C·d·taps + nnz(A)) MACs.

    Kernels and (channel, kernel) maps that no coefficient reads do not exist, so they are not charged.
    """
    live = shared.live
    return nonzero_counts(
        shared.nonzeros, int(live.sum()), kernels=int(live.any(dim=0).sum()), taps=shared.taps, positions=positions
    )


def nonzero_counts(nonzeros: int, maps: int, *, kernels: int, taps: int, positions: int) -> LayerCounts:
    """`sparse_counts` from numbers. A 1×1 convolution has no maps: its weights are the coefficients."""
    if taps == 1:
        return LayerCounts(nonzeros, positions * nonzeros)
    return LayerCounts(nonzeros + kernels * taps, positions * (maps * taps + nonzeros))
