"""A convolution as a matrix product: which inputs meet which weights.

A row per output position, a column per weight of one output channel, so that `rows @ matrix(weight)ᵀ` is the layer. One
code for one, two and three spatial axes, for groups, and for linear layers, whose rows are their inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class MatrixLayer:
    """One convolution or linear call.

    rank: spatial axes, 0 for a linear layer. The geometry is per spatial axis; `padding` is (before, after).
    """

    weight: str
    bias: str | None
    rank: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def rows(self, inputs: Tensor) -> Tensor:
        """Inputs ([n, C, …] or [n, …, C] for a linear layer) as [groups, n·positions, C/groups·prod(kernel)]."""
        if self.rank == 0:
            return inputs.reshape(1, -1, inputs.shape[-1])
        sides = [side for pair in reversed(self.padding) for side in pair]
        padded = F.pad(inputs, sides) if any(sides) else inputs
        spans = [step * (size - 1) for step, size in zip(self.dilation, self.kernel, strict=True)]
        counts = [
            (length - span - 1) // step + 1
            for length, span, step in zip(padded.shape[2:], spans, self.stride, strict=True)
        ]
        taps = []
        for offset in itertools.product(*(range(size) for size in self.kernel)):
            place = [slice(None), slice(None)]
            for at, dilation, count, step in zip(offset, self.dilation, counts, self.stride, strict=True):
                first = at * dilation
                place.append(slice(first, first + (count - 1) * step + 1, step))
            taps.append(padded[tuple(place)])
        stacked = torch.stack(taps, dim=2)  # [n, C, taps, *positions]
        n, channels = stacked.shape[:2]
        grouped = stacked.reshape(n, self.groups, channels // self.groups * len(taps), -1)
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)

    def targets(self, outputs: Tensor) -> Tensor:
        """Outputs ([n, O, …], or [n, …, O] for a linear layer) as [groups, n·positions, O/groups]."""
        if self.rank == 0:
            return outputs.reshape(1, -1, outputs.shape[-1])
        n, channels = outputs.shape[:2]
        return outputs.reshape(n, self.groups, channels // self.groups, -1).permute(1, 0, 3, 2).flatten(1, 2)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [groups, O/groups, columns of a row]."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)


def matrix_layer(name: str, call: Mapping[str, Any], weight: Tensor) -> MatrixLayer | None:
    """The layer behind a bound call of operator `name`; None where it is no such layer or its tensors are computed."""
    rank = _CONVOLUTIONS.get(name, 0 if name == "linear" else None)
    if rank is None:
        return None
    bias = call["bias"]
    bias_name = bias.target if bias is not None else None
    if rank == 0:
        return MatrixLayer(call["weight"].target, bias_name, 0)
    kernel = tuple(weight.shape[2:])
    dilation = _per_axis(call["dilation"], rank)
    return MatrixLayer(
        call["weight"].target,
        bias_name,
        rank,
        kernel,
        _per_axis(call["stride"], rank),
        _padding(call["padding"], kernel, dilation),
        dilation,
        call["groups"],
    )


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if given == "valid":
        return tuple((0, 0) for _ in kernel)
    if given == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((size, size) for size in _per_axis(given, len(kernel)))


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values
