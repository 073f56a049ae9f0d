"""Who decides whether a step of recovery is kept: accuracy on validation images, or without labels the output error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import nn

from core.analysis import profile
from core.network import Network
from core.recovery.dataset import ImageDataset
from core.recovery.evaluation import accuracy
from core.recovery.images import Split
from core.recovery.outputs import OutputScales, every_output, relative_error

# Images that are looked at after each epoch; all that decides looks at more.
QUICK_EXAMPLES = 2048
_LEAST_EXAMPLES = 16
# Multiply-accumulates of a look after each epoch, and of one that decides where its number of images is ours to choose.
_QUICK_MACS = {"cpu": 2e11, "cuda": 2e13}
_HELD_OUT_EXAMPLES = 2048
_HELD_OUT_MACS = {"cpu": 2e12, "cuda": 2e14}
_HELD_OUT_BYTES = {"cpu": 2**28, "cuda": 2**31}


class Judge(ABC):
    """measure: the name of its figure in reports. scales: how outputs are compared, where it compares them."""

    measure: str
    scales: OutputScales | None = None

    @abstractmethod
    def value(self, network: Network | nn.Module, *, quick: bool = False) -> float:
        """The figure of a network, or of a module on the judge's device; `quick`: from fewer images."""

    @abstractmethod
    def no_worse(self, candidate: float, best: float) -> bool:
        """Whether a candidate with this figure may take the place of the best so far."""


class _Looking(Judge):
    """A judge that looks at networks itself."""

    def __init__(self, original: Network) -> None:
        self._original = original

    @cached_property
    def of_original(self) -> float:
        """The figure of the original, measured once."""
        return self.value(self._original)


class AccuracyJudge(_Looking):
    """Top-1 on the validation split."""

    measure = "validation_accuracy"

    def __init__(self, original: Network, dataset: ImageDataset, device: torch.device) -> None:
        super().__init__(original)
        self._dataset, self._device = dataset, device
        self._quick = _quick(dataset.val, original, device)

    def value(self, network: Network | nn.Module, *, quick: bool = False) -> float:
        return accuracy(network, self._quick if quick else self._dataset.val, self._dataset, device=self._device)

    def no_worse(self, candidate: float, best: float) -> bool:
        return candidate >= best


class OutputJudge(_Looking):
    """Relative error of all outputs against the original's on held-out images (`core.recovery.outputs`)."""

    measure = "output_error"

    def __init__(self, original: Network, dataset: ImageDataset, device: torch.device) -> None:
        super().__init__(original)
        self._dataset, self._device = dataset, device
        sampled = dataset.val.sample(_held_out_examples(original, device)).images
        # In no order, so that the first of them are a sample, too.
        self.held_out = sampled[torch.randperm(len(sampled), generator=torch.Generator().manual_seed(0))]
        self._targets = list(every_output(original, self.held_out, dataset, device))
        pieces = zip(*self._targets, strict=True)
        self.scales = OutputScales.of([torch.cat(piece) for piece in pieces])
        quick = len(_quick(Split(self.held_out, None), original, device))
        self._quick_batches = max(1, quick * len(self._targets) // max(1, len(self.held_out)))

    def value(self, network: Network | nn.Module, *, quick: bool = False) -> float:
        batches = self._quick_batches if quick else len(self._targets)
        totals: list[list[float]] = []
        count = sum(len(target[0]) for target in self._targets[:batches])
        images = self.held_out[:count]
        found = every_output(network, images, self._dataset, self._device)
        for outputs, target in zip(found, self._targets[:batches], strict=True):
            squares = self.scales.squares(outputs, target)
            totals = totals or [[0.0, 0.0] for _ in squares]
            for total, pair in zip(totals, squares, strict=True):
                for index, value in enumerate(pair):
                    total[index] += len(target[0]) * float(value)
        return relative_error([(difference, target) for difference, target in totals])

    def no_worse(self, candidate: float, best: float) -> bool:
        return candidate <= best


def judge_for(original: Network, dataset: ImageDataset, device: torch.device) -> AccuracyJudge | OutputJudge:
    return (AccuracyJudge if dataset.labelled else OutputJudge)(original, dataset, device)


def _quick(split: Split, original: Network, device: torch.device) -> Split:
    macs = _QUICK_MACS.get(device.type, _QUICK_MACS["cpu"])
    by_time = max(_LEAST_EXAMPLES, int(macs // max(1, profile(original).costs.macs)))
    return split.sample(min(QUICK_EXAMPLES, by_time))


def _held_out_examples(original: Network, device: torch.device) -> int:
    kind = device.type if device.type in _HELD_OUT_MACS else "cpu"
    bytes_per_image = 4 * sum(torch.Size(spec.shape).numel() for spec in original.outputs)
    by_memory = _HELD_OUT_BYTES[kind] // max(1, bytes_per_image)
    by_time = int(_HELD_OUT_MACS[kind] // max(1, profile(original).costs.macs))
    return max(_LEAST_EXAMPLES, min(_HELD_OUT_EXAMPLES, by_memory, by_time))
