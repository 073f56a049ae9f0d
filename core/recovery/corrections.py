"""Corrections without a gradient step: what closed forms bring back from images, labels or not.

Each gives a candidate network and what to report of it; whether it is kept is decided by who holds a held-out measure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.analysis import profile
from core.network import Network
from core.recovery.dataset import ImageDataset
from core.recovery.evaluation import batch_size_for
from core.recovery.recalibration import Kept, kept_channels, statistics, transfer
from core.recovery.refit import refit

BATCH_NORM_TRANSFER = "batch_norm_transfer"
LEAST_SQUARES_REFIT = "least_squares_refit"

# Images or noise samples that the statistics are taken from, as in the table of `core.recovery.recalibration`.
STATISTICS_EXAMPLES = 256
MIN_STATISTICS_BATCH = 32
# Images of a refit: more say little that is new. Both networks' live values of all of them are held at once.
REFIT_EXAMPLES = 512
MIN_REFIT_EXAMPLES = 16
_REFIT_BYTES = {"cpu": 2 * 2**30, "cuda": 12 * 2**30}
# Multiply-accumulates of the two forward passes, so that the time is bounded whatever is uploaded.
_REFIT_MACS = {"cpu": 2e12, "cuda": 2e14}
_LAYERS_NAMED = 8
# The same for the statistics of batch-norms, of which every image gives as many as a layer has positions.
_STATISTICS_MACS = {"cpu": 2.5e11, "cuda": 2.5e13}


@dataclass(frozen=True)
class Correction:
    """A candidate (None where the correction has nothing to work on) and its line of the report."""

    name: str
    network: Network | None
    details: dict[str, Any]


def corrections(
    network: Network, original: Network, dataset: ImageDataset, kept: Kept, device: torch.device
) -> list[Correction]:
    """Every correction that the dataset's train images allow, from the weakest to the strongest."""
    return [
        transferred(network, original, dataset, kept_channels(original, kept), device),
        refitted(network, original, dataset, kept, device),
    ]


def transferred(
    network: Network, original: Network, dataset: ImageDataset, rows: Mapping[str, Tensor], device: torch.device
) -> Correction:
    """Batch-norm statistics moved by what training images show."""
    if not rows:
        return _nothing(BATCH_NORM_TRANSFER, "The network has no batch-norm with running statistics.")
    images = dataset.train.sample(statistics_examples(original, device)).images
    size = max(MIN_STATISTICS_BATCH, batch_size_for(dataset.image_shape, device))
    batches = [(dataset.prepare(batch),) for batch in images.split(size)]
    found = transfer(network, statistics(network, batches, device), statistics(original, batches, device), rows)
    if not finite(found):
        return _nothing(BATCH_NORM_TRANSFER, "The transferred statistics are not finite.")
    return Correction(BATCH_NORM_TRANSFER, found, {"examples": len(images), "layers": len(rows)})


def refitted(
    network: Network, original: Network, dataset: ImageDataset, kept: Kept, device: torch.device
) -> Correction:
    """Weights solved anew, layer by layer (`core.recovery.refit`)."""
    count = refit_examples(network, original, device)
    images = dataset.train.sample(count).images
    if min(count, len(images)) < MIN_REFIT_EXAMPLES:
        return _nothing(
            LEAST_SQUARES_REFIT,
            f"It needs {MIN_REFIT_EXAMPLES} images at least; the train split has {len(dataset.train)}, and {count} of "
            "them fit the memory and the time that a refit may take.",
        )
    started = time.monotonic()
    found = refit(network, original, dataset.prepare(images), kept=kept, device=device)
    if not found.layers:
        return _nothing(LEAST_SQUARES_REFIT, "No layer says more like the original with other weights.")
    worst = sorted(found.layers.items(), key=lambda item: -item[1][1])[:_LAYERS_NAMED]
    details = {
        "examples": len(images),
        "layers": len(found.layers),
        "largest_errors": {name: {"before": round(b, 4), "after": round(a, 4)} for name, (b, a) in worst},
        "seconds": round(time.monotonic() - started, 3),
    }
    return Correction(LEAST_SQUARES_REFIT, found.network if finite(found.network) else None, details)


def refit_examples(network: Network, original: Network, device: torch.device) -> int:
    """Images of one refit that fit the memory and the time that it may take."""
    kind = device.type if device.type in _REFIT_MACS else "cpu"
    costs = [profile(one).costs for one in (network, original)]
    by_memory = _REFIT_BYTES[kind] // max(1, sum(cost.peak_activation_bytes for cost in costs))
    by_time = int(_REFIT_MACS[kind] // max(1, sum(cost.macs for cost in costs)))
    return min(REFIT_EXAMPLES, by_memory, by_time)


def statistics_examples(original: Network, device: torch.device) -> int:
    """Examples that tell the statistics of batch-norms, within the time that it may take."""
    macs = _STATISTICS_MACS.get(device.type, _STATISTICS_MACS["cpu"])
    by_time = int(macs // max(1, profile(original).costs.macs))
    return min(STATISTICS_EXAMPLES, max(MIN_STATISTICS_BATCH, by_time))


def _nothing(name: str, reason: str) -> Correction:
    return Correction(name, None, {"reason": reason})


def finite(network: Network) -> bool:
    """Whether every tensor holds numbers only."""
    return all(bool(t.isfinite().all()) for t in network.tensors.values() if t.is_floating_point())
