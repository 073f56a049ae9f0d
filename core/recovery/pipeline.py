"""Getting back what pruning cost, each step kept only if a held-out measure says that it helps.

With labels: the closed-form corrections on training images, then fine-tuning with distillation from the best of them; the
best of all stages by validation accuracy is returned, so that the result is never worse there than the start. Unlabelled
images: the corrections, judged by the output error against the original on held-out images. Without data: batch-norm
statistics on noise (`core.recovery.recalibration`). Test images are used for the report and for nothing else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.checkpoint import Checkpoint, Saved
from core.network import Network
from core.progress import Progress, ProgressEvent, silent
from core.recovery.augmentation import choose_augmentation
from core.recovery.corrections import (
    BATCH_NORM_TRANSFER,
    MIN_STATISTICS_BATCH,
    STATISTICS_EXAMPLES,
    Correction,
    corrections,
    finite,
)
from core.recovery.dataset import ImageDataset
from core.recovery.evaluation import accuracy, batch_size_for, predict
from core.recovery.recalibration import Inputs, Kept, kept_channels, statistics, transfer, transfer_guard
from core.recovery.schedule import RecoveryConfig, plan_schedule
from core.recovery.training import fine_tune

_HELD_OUT_EXAMPLES = 2048
RETRY_FACTOR = 0.1
_NO_BATCH_NORM = "The network has no batch-norm with running statistics."


@dataclass(frozen=True)
class Recovered:
    """The network to deliver and how it came about.

    details: JSON for the report. accuracy_*: top-1 on the test split (None without labels). validation_drop: the
    original's validation accuracy less the network's.
    """

    network: Network
    details: dict[str, Any]
    accuracy_original: float | None = None
    accuracy_after: float | None = None
    validation_drop: float | None = None


@dataclass(frozen=True)
class _Scored:
    """A stage's network with its validation accuracy."""

    stage: str
    network: Network
    validation: float


@dataclass
class _Report:
    """Collects `details` and tells the listener what is going on."""

    progress: Progress
    started: float = field(default_factory=time.monotonic)
    details: dict[str, Any] = field(default_factory=dict)

    def say(self, message: str) -> None:
        self.progress(ProgressEvent("recover", message=message))

    def finish(self, device: torch.device) -> dict[str, Any]:
        where = {"device": str(device), "threads": torch.get_num_threads()}
        return {**self.details, **where, "seconds": round(time.monotonic() - self.started, 3)}


class _Steps:
    """The checkpoint as one recovery sees it: its own steps, and only those that began with the same network."""

    def __init__(self, checkpoint: Checkpoint, name: str, network: Network) -> None:
        self._checkpoint = checkpoint
        self._name = name
        digest = hashlib.sha256()
        for key in sorted(network.tensors):
            digest.update(f"{key}{tuple(network.tensors[key].shape)}".encode())
            digest.update(network.tensors[key].detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        self._start = digest.hexdigest()

    def finished(self, step: str) -> Saved | None:
        found = self._checkpoint.finished(f"{self._name}/{step}")
        return found if found is not None and found.values["start"] == self._start else None

    def finish(self, step: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._checkpoint.finish(f"{self._name}/{step}", Saved({**values, "start": self._start}, tensors))


def recover(
    network: Network,
    original: Network,
    dataset: ImageDataset | None,
    config: RecoveryConfig,
    *,
    kept: Kept,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
    step: str = "recover",
) -> Recovered:
    """Recover what `network` lost against `original`; see the module's text.

    The dataset must fit the original (`check_fits`). kept: what is left of the original's tensors
    (`core.surgery.kept_indices`); a tensor that is not named is whole. Same inputs, seed and device give the same network.
    checkpoint: what an interrupted run left, and where this one keeps its own, under names that begin with `step`.
    """
    device, report = torch.device(device), _Report(progress)
    kept_steps = _Steps(checkpoint or Checkpoint(), step, network)
    unchanged = _same(network, original)
    if dataset is not None and dataset.labelled:
        return _with_labels(network, original, dataset, config, kept, unchanged, seed, device, report, kept_steps)
    if unchanged:
        report.details = {"method": "none", "reason": "Nothing was removed."}
        return Recovered(network, report.finish(device))
    if dataset is None:
        report.say("Transferring batch-norm statistics")
        found, recalibration = _on_noise(network, original, kept_channels(original, kept), seed, device)
        method = BATCH_NORM_TRANSFER if recalibration["kept"] else "none"
        report.details = {"method": method, "batch_norm": recalibration}
    else:
        report.say("Fitting the layers to the original's outputs")
        found, report.details = _on_images(network, original, dataset, kept, device, kept_steps)
    return Recovered(found, report.finish(device))


def _with_labels(
    network: Network,
    original: Network,
    dataset: ImageDataset,
    config: RecoveryConfig,
    kept: Kept,
    unchanged: bool,
    seed: int,
    device: torch.device,
    report: _Report,
    steps: _Steps,
) -> Recovered:
    report.say("Measuring the original and the pruned network")
    baseline = {name: accuracy(original, getattr(dataset, name), dataset, device=device) for name in ("val", "test")}
    if unchanged:
        report.details = {"method": "none", "reason": "Nothing was removed."}
        report.details["accuracy"] = {"original": baseline, "before": baseline, "after": baseline}
        return Recovered(network, report.finish(device), baseline["test"], baseline["test"], 0.0)

    def scored(stage: str, candidate: Network) -> _Scored:
        return _Scored(stage, candidate, accuracy(candidate, dataset.val, dataset, device=device))

    start = best = scored("pruned", network)
    stages = {start.stage: start.validation}
    before_test = accuracy(network, dataset.test, dataset, device=device)
    corrected = steps.finished("corrections")
    if corrected is None:
        report.say("Fitting the layers to the original's outputs")
        tried = corrections(network, original, dataset, kept, device)
        for correction in tried:
            if correction.network is not None:
                best = _better(best, scored(correction.name, correction.network), stages)
        described = _described(tried)
        values = {"stages": stages, "best": best.stage, "corrections": described}
        steps.finish("corrections", values, {} if best is start else best.network.tensors)
    else:
        described, stages, stage = (corrected.values[name] for name in ("corrections", "stages", "best"))
        if corrected.tensors:
            best = _Scored(stage, network.with_tensors(corrected.tensors), stages[stage])
    training: dict[str, Any] = {"epochs": 0}
    if config.epochs != 0:
        trained, training = _train(best, original, dataset, config, seed, device, report)
        if trained is not None:
            best = _better(best, trained, stages)
        training["kept"] = best is trained
    report.say("Measuring the result on the test images")
    after_test = before_test if best is start else accuracy(best.network, dataset.test, dataset, device=device)
    report.details = {
        "method": best.stage,
        "validation_accuracy": stages,
        "corrections": described,
        "training": training,
        "examples": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        "accuracy": {
            "original": baseline,
            "before": {"val": start.validation, "test": before_test},
            "after": {"val": best.validation, "test": after_test},
        },
    }
    return Recovered(
        best.network,
        report.finish(device),
        accuracy_original=baseline["test"],
        accuracy_after=after_test,
        validation_drop=baseline["val"] - best.validation,
    )


def _better(best: _Scored, candidate: _Scored, stages: dict[str, float]) -> _Scored:
    """The candidate unless it is worse on validation; a tie goes to the later stage."""
    stages[candidate.stage] = candidate.validation
    return candidate if candidate.validation >= best.validation else best


def _train(
    start: _Scored,
    original: Network,
    dataset: ImageDataset,
    config: RecoveryConfig,
    seed: int,
    device: torch.device,
    report: _Report,
) -> tuple[_Scored | None, dict[str, Any]]:
    """The trained network with its score (None if training diverged), and what to report of it.

    If training at the default learning rate diverges or does harm, it is tried once more at a tenth of it.
    """
    report.say("Choosing augmentations by what the original bears")
    augmentation, measured = choose_augmentation(original, dataset, seed=seed, device=device)
    schedule = plan_schedule(config, len(dataset.train), start.network, original, device)
    attempts = [schedule]
    if config.learning_rate is None:
        attempts.append(replace(schedule, learning_rate=RETRY_FACTOR * schedule.learning_rate))
    for schedule in attempts:
        began = time.monotonic()
        trained = fine_tune(
            start.network,
            original,
            dataset,
            schedule,
            augmentation,
            seed=seed,
            device=device,
            progress=report.progress,
        )
        seconds = time.monotonic() - began
        candidate = None
        if trained.network is not None:
            report.say("Measuring the trained network")
            validation = accuracy(trained.network, dataset.val, dataset, device=device)
            candidate = _Scored("fine_tuning", trained.network, validation)
        if candidate is not None and candidate.validation >= start.validation:
            break
    return candidate, {
        **schedule.as_dict(),
        "start": start.stage,
        "retried": schedule is not attempts[0],
        "augmentation": measured,
        "diverged": candidate is None,
        "curve": [list(point) for point in trained.curve],
        "seconds": round(seconds, 3),
        "images_per_s": round(schedule.steps * schedule.batch_size / seconds, 1),
    }


def _on_noise(
    network: Network, original: Network, rows: Mapping[str, Tensor], seed: int, device: torch.device
) -> tuple[Network, dict[str, Any]]:
    """Transfer on Gaussian noise, kept if it lowers the output error on other noise."""
    if not rows:
        return network, {"kept": False, "reason": _NO_BATCH_NORM}
    fit, held_out = (_noise(network, seed, stream) for stream in (0, 1))
    observed, reference = statistics(network, fit, device), statistics(original, fit, device)
    without, with_transfer = transfer_guard(network, original, observed, reference, rows, held_out, device)
    found = transfer(network, observed, reference, rows)
    better = with_transfer < without and finite(found)
    return (found if better else network), {
        "inputs": "gaussian noise",
        "examples": sum(len(inputs[0]) for inputs in fit),
        "layers": len(rows),
        "output_error_before": round(without, 6),
        "output_error_after": round(with_transfer, 6),
        "kept": better,
    }


def _on_images(
    network: Network, original: Network, dataset: ImageDataset, kept: Kept, device: torch.device, steps: _Steps
) -> tuple[Network, dict[str, Any]]:
    """The correction that comes nearest to the original's outputs on held-out images, and the report."""
    corrected = steps.finished("corrections")
    if corrected is not None:
        return (network.with_tensors(corrected.tensors) if corrected.tensors else network), {
            name: value for name, value in corrected.values.items() if name != "start"
        }
    held_out = dataset.val.sample(_HELD_OUT_EXAMPLES).images
    target = predict(original, held_out, dataset, device=device)

    def error(candidate: Network) -> float:
        return float((predict(candidate, held_out, dataset, device=device) - target).norm() / target.norm())

    tried = corrections(network, original, dataset, kept, device)
    candidates = {"pruned": network, **{one.name: one.network for one in tried if one.network is not None}}
    errors = {name: error(candidate) for name, candidate in candidates.items()}
    best = min(errors, key=errors.__getitem__)
    details = {
        "method": "none" if best == "pruned" else best,
        "inputs": "unlabelled training images",
        "held_out_examples": len(held_out),
        "output_error": {name: round(value, 6) for name, value in errors.items()},
        "corrections": _described(tried),
    }
    steps.finish("corrections", details, {} if best == "pruned" else candidates[best].tensors)
    return candidates[best], details


def _described(tried: Sequence[Correction]) -> dict[str, Any]:
    return {one.name: one.details for one in tried}


def _noise(network: Network, seed: int, stream: int) -> Sequence[Inputs]:
    size = max(MIN_STATISTICS_BATCH, batch_size_for(network.inputs[0].shape, torch.device("cpu")))
    count = max(1, STATISTICS_EXAMPLES // size)
    size = min(size, STATISTICS_EXAMPLES)
    return [network.random_inputs(size, _derived_seed(seed, index, stream)) for index in range(count)]


def _derived_seed(*parts: int) -> int:
    """A seed of its own for each combination of `parts`, in [0, 2**63): what every torch generator takes."""
    (state,) = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    return int(state) >> 1


def _same(network: Network, original: Network) -> bool:
    return network.tensors.keys() == original.tensors.keys() and all(
        tensor.shape == original.tensors[name].shape and torch.equal(tensor, original.tensors[name])
        for name, tensor in network.tensors.items()
    )
