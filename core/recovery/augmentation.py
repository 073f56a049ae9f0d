"""Random crops and flips, used only where the original network was measured not to mind them.

A flip is harmless for most photographs and ruinous for digits; nobody tells us which dataset this is. So the original is
scored on augmented validation images, and an augmentation that costs it more than two points is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.network import Network
from core.recovery.dataset import ImageDataset, Split
from core.recovery.evaluation import accuracy

MAX_DROP = 0.02
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
    """What the original's validation accuracy bears (see the module's text), and the measurements for the report."""
    trial = dataset.val.sample(_TRIAL_EXAMPLES)
    plain = accuracy(original, trial, dataset, device=device)
    height, width = trial.images.shape[2:]
    candidates = {
        "crop": Augmentation(padding=max(1, min(height, width) // 8)),
        "flip": Augmentation(flip=True),
    }
    chosen, measured = {}, {}
    for name, candidate in candidates.items():
        generator = torch.Generator().manual_seed(seed)
        augmented = Split(candidate(trial.images, generator), trial.labels)
        drop = plain - accuracy(original, augmented, dataset, device=device)
        chosen[name] = drop <= MAX_DROP
        measured[name] = {"used": chosen[name], "accuracy_drop": round(drop, 6)}
    padding = candidates["crop"].padding
    measured["crop"]["padding"] = padding
    return Augmentation(flip=chosen["flip"], padding=padding if chosen["crop"] else 0), measured
