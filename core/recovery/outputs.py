"""How far a network's outputs are from the original's, whatever they mean: scores, boxes, maps, images.

Every output counts the same, however large its numbers are. Where one output holds things of different sizes side by side,
as a detector's boxes and scores in one array, each index of that axis counts the same: the axis is the one along which the
size of the entries differs most, if it differs much. Outputs that are no floating-point numbers have no distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.network import Network
from core.recovery.dataset import ImageDataset
from core.recovery.evaluation import batch_size_for
from core.recovery.images import Images

# Standard deviation of the logarithm of the entries' size along an axis, from which on its indices are weighed apart.
_UNEVEN = 0.5
# No index counts for smaller than this share of the whole output's size: what is silent but for a few entries, as the
# scores of a detector, would otherwise be all that counts.
_LEAST_SHARE = 0.25
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class OutputScales:
    """weights: per output, what a squared difference is multiplied by, a number or a vector along one axis; None for an
    output that does not count. powers: the mean square of each output, so weighed; 1 where
    that is zero. probabilities: which outputs are rows that sum to one."""

    weights: tuple[Tensor | None, ...]
    powers: tuple[float, ...]
    probabilities: tuple[bool, ...]

    @staticmethod
    def of(outputs: Sequence[Tensor]) -> OutputScales:
        """From the original's outputs ([n, …] each) on some images."""
        weights = tuple(_weight(output) if output.is_floating_point() else None for output in outputs)
        powers = tuple(
            (float((output.square() * weight).mean()) if weight is not None else 0.0) or 1.0
            for output, weight in zip(outputs, weights, strict=True)
        )
        return OutputScales(weights, powers, tuple(_are_probabilities(output) for output in outputs))

    def to(self, device: torch.device) -> OutputScales:
        weights = tuple(weight.to(device) if weight is not None else None for weight in self.weights)
        return OutputScales(weights, self.powers, self.probabilities)

    def squares(self, found: Sequence[Tensor], target: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per output that counts: mean weighted squared difference, and mean weighted square of the target."""
        return [
            (((one - other).square() * weight).mean(), (other.square() * weight).mean())
            for one, other, weight in zip(found, target, self.weights, strict=True)
            if weight is not None
        ]


def relative_error(squares: Sequence[tuple[float, float]]) -> float:
    """√ of the mean over outputs of difference² / target²; 0 where nothing counts."""
    shares = [difference / target if target else float(difference > 0) for difference, target in squares]
    return math.sqrt(sum(shares) / len(shares)) if shares else 0.0


def as_outputs(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a network returns, as a tuple; floating-point numbers in float32."""
    several = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    return tuple(output.float() if output.is_floating_point() else output for output in several)


@torch.no_grad()
def every_output(
    network: Network | nn.Module, images: Images, dataset: ImageDataset, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """All outputs for stored images, batch by batch, in evaluation mode and float32."""
    module = network.module().to(device) if isinstance(network, Network) else network
    was_training = module.training
    module.eval()
    try:
        for batch in images.split(batch_size_for(images.shape[1:], device)):
            yield as_outputs(module(dataset.prepare(batch.to(device))))
    finally:
        module.train(was_training)


def _weight(output: Tensor) -> Tensor:
    whole = output.square().mean()
    if whole == 0:
        return torch.ones_like(whole)  # nothing to be relative to
    best, spread = None, _UNEVEN
    for axis in range(1, output.ndim) if output.ndim > 2 else ():
        if output.shape[axis] == 1:
            continue
        others = [other for other in range(output.ndim) if other != axis]
        sizes = output.square().mean(dim=others, keepdim=True).clamp_min(_LEAST_SHARE**2 * whole)
        found = float(sizes.log().std() / 2)
        if found > spread:
            best, spread = sizes, found
    return (1 / (whole if best is None else best)).detach()


def _are_probabilities(output: Tensor) -> bool:
    if not output.is_floating_point() or output.ndim != 2 or output.shape[1] < 2:
        return False
    return bool((output >= 0).all()) and bool(((output.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all())
