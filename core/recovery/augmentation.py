"""Random crops and flips, used only where the original network was measured not to mind them; cutout and mixup on request.

A flip is harmless for most photographs and ruinous for digits; nobody tells us which dataset this is. So the original is
scored on augmented validation images, and an augmentation that costs it more than two points is left out. Without labels
its classes for the plain images take their place, and it may disagree with itself on one image in ten. What gives no
classes is only imitated: there the original says of each augmented image itself what is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.network import Network
from core.recovery.dataset import ImageDataset
from core.recovery.evaluation import predict, top1

MAX_DROP = 0.02
MAX_DISAGREEMENT = 0.1
_TRIAL_EXAMPLES = 2048


@dataclass(frozen=True)
class Augmentation:
    """Horizontal flips of half of the images, and crops out of the image padded with zeros by `padding` pixels."""

    flip: bool = False
    padding: int = 0

    @property
    def active(self) -> bool:
        return self.flip or self.padding > 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment [n, C, H, W]; `generator` lives on the CPU, so that every device draws the same."""
        count, _, height, width = images.shape
        if self.padding:
            padded = F.pad(images, (self.padding,) * 4)
            top, left = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator).to(images.device)
            rows = top + torch.arange(height, device=images.device)
            columns = left + torch.arange(width, device=images.device)
            example = torch.arange(count, device=images.device)
            # Advanced indices around a slice put the channels last; one grey channel would even pass for contiguous, so
            # that only a clone restores the strides that a network with views needs.
            windows = padded[example[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            images = windows.clone(memory_format=torch.contiguous_format)
        if self.flip:
            flipped = torch.rand(count, generator=generator).to(images.device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        return images


def choose_augmentation(
    original: Network, dataset: ImageDataset, *, seed: int, device: torch.device
) -> tuple[Augmentation, dict[str, Any]]:
    """What the original bears (see the module's text), and the measurements for the report."""
    trial = dataset.val.sample(_TRIAL_EXAMPLES)
    height, width = trial.images.shape[2:]
    candidates = {
        "crop": Augmentation(padding=max(1, min(height, width) // 8)),
        "flip": Augmentation(flip=True),
    }
    measured: dict[str, dict[str, Any]] = {name: {"used": True} for name in candidates}
    if dataset.labelled or _classifies(original):
        plain = predict(original, trial.images, dataset, device=device)
        labels = trial.labels if dataset.labelled else plain.argmax(dim=1)
        for name, candidate in candidates.items():
            augmented = candidate(trial.images, torch.Generator().manual_seed(seed))
            drop = top1(plain, labels) - top1(predict(original, augmented, dataset, device=device), labels)
            figure = "accuracy_drop" if dataset.labelled else "disagreement"
            limit = MAX_DROP if dataset.labelled else MAX_DISAGREEMENT
            measured[name] = {"used": drop <= limit, figure: round(drop, 6)}
    padding = candidates["crop"].padding
    measured["crop"]["padding"] = padding
    return Augmentation(flip=measured["flip"]["used"], padding=padding if measured["crop"]["used"] else 0), measured


def cutout(inputs: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """[n, C, H, W] network inputs, each with a square set to zero, the mean where they are normalised.

    The square's side is `share` of the shorter side; its centre is anywhere, so that it may reach over the edge (DeVries,
    Taylor, 2017).
    """
    count, _, height, width = inputs.shape
    side = max(1, round(share * min(height, width)))
    rows, columns = (
        torch.randint(size, (count, 1), generator=generator).to(inputs.device) - side // 2 for size in (height, width)
    )
    inside = [
        (first <= (at := torch.arange(size, device=inputs.device))) & (at < first + side)
        for first, size in ((rows, height), (columns, width))
    ]
    return inputs.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def mixup(inputs: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """(mixed inputs, [n] which image was mixed into each, the first one's share), Zhang et al., 2018.

    One share per batch, at least a half, so that an image's own label is the one it is known by.
    """
    # torch draws no Beta from a generator of its own.
    seed = int(torch.randint(2**62, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    share = max(share, 1 - share)
    others = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    return share * inputs + (1 - share) * inputs[others], others, share


def _classifies(network: Network) -> bool:
    return len(network.outputs) == 1 and len(network.outputs[0].shape) == 1 and network.outputs[0].shape[0] > 1
