"""What training minimises: the labels' cross-entropy and the distance from the original's outputs.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015:

    loss = 0.9 · T² · KL(original ‖ network, both at temperature T = 4) + 0.1 · cross-entropy

The original's outputs say more of an image than its label does, for the price of the original's forward pass. Without
labels they are all there is: rows of scores are compared as above, and every other output (boxes, maps, images) by its
squared difference relative to the original's (`core.recovery.outputs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.recovery.outputs import OutputScales

TEMPERATURE = 4.0
DISTILLATION_WEIGHT = 0.9
_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class Targets:
    """labels: [n] int64, or None. mixed: with mixup, (the labels of the image mixed in, the share of the first)."""

    labels: Tensor | None
    mixed: tuple[Tensor, float] | None = None


def labelled_loss(scores: Tensor, targets: Targets, teacher_scores: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """Mean loss of a batch: scores [n, K] in float32."""
    by_labels = F.cross_entropy(scores, targets.labels, label_smoothing=smoothing)
    if targets.mixed is not None:
        others, share = targets.mixed
        by_labels = share * by_labels + (1 - share) * F.cross_entropy(scores, others, label_smoothing=smoothing)
    if teacher_scores is None:
        return by_labels
    return DISTILLATION_WEIGHT * divergence(scores, teacher_scores) + (1 - DISTILLATION_WEIGHT) * by_labels


def divergence(scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """T² · KL(teacher ‖ network), both [n, K], averaged over the batch."""
    student = F.log_softmax(scores / TEMPERATURE, dim=1)
    teacher = F.log_softmax(teacher_scores / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def output_loss(outputs: Sequence[Tensor], teacher: Sequence[Tensor], scales: OutputScales) -> Tensor:
    """Mean over the outputs that count of their distance from the original's, relative as in the figure that judges.

    An image's share grows with the logarithm of its distance where that is large: one whose boxes went through an
    exponential would otherwise outweigh all others by orders of magnitude, and fill the optimiser's moments.
    """
    losses = []
    for found, target, weight, power, probabilities in zip(
        outputs, teacher, scales.weights, scales.powers, scales.probabilities, strict=True
    ):
        if weight is None:
            continue
        squares = (found - target).square() * (weight / power)
        loss = squares.reshape(len(found), -1).mean(dim=1).log1p().mean()
        if probabilities:
            loss = loss + divergence(*(rows.clamp_min(_LEAST_PROBABILITY).log() for rows in (found, target)))
        elif found.ndim == 2 and found.shape[1] > 1:
            loss = loss + divergence(found, target)
        losses.append(loss)
    return torch.stack(losses).mean()
