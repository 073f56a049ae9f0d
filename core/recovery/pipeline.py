"""Getting back what pruning cost, each step kept only if a held-out measure says that it helps.

With images: the closed-form corrections on training images, then training from the best of them, by the labels and the
original's outputs or, without labels, by the original's outputs alone. The best of all stages is returned, by validation
accuracy or by the output error on held-out images, so that the result is never worse there than the start. Without data:
batch-norm statistics on noise (`core.recovery.recalibration`). Test images are used for the report and for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.checkpoint import Checkpoint
from core.network import Network
from core.progress import Progress, ProgressEvent, silent
from core.recovery.config import RecoveryConfig
from core.recovery.corrections import (
    BATCH_NORM_TRANSFER,
    MIN_STATISTICS_BATCH,
    Correction,
    corrections,
    finite,
    statistics_examples,
)
from core.recovery.dataset import ImageDataset
from core.recovery.evaluation import accuracy, batch_size_for
from core.recovery.judges import AccuracyJudge, OutputJudge, judge_for
from core.recovery.recalibration import Inputs, Kept, kept_channels, statistics, transfer, transfer_guard
from core.recovery.steps import Steps
from core.recovery.training_attempts import Training, train

_NO_BATCH_NORM = "The network has no batch-norm with running statistics."
_PRUNED, _FINE_TUNING = "pruned", "fine_tuning"


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


@dataclass(frozen=True)
class _Stage:
    """One network on the way, with the judge's figure."""

    name: str
    network: Network
    value: float


@dataclass
class _Stages:
    """The stages in order; `best` is the last one that was no worse than the best before it."""

    judge: AccuracyJudge | OutputJudge
    best: _Stage
    values: dict[str, float]

    def take(self, name: str, network: Network, value: float) -> bool:
        """Whether this stage is now the best."""
        self.values[name] = value
        better = self.judge.no_worse(value, self.best.value)
        if better:
            self.best = _Stage(name, network, value)
        return better


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
    (`core.surgery.kept_indices`); a tensor that is not named is whole. Same inputs, seed, device, precision and thread
    count give the same network. checkpoint: what an interrupted run left, and where this one keeps its own, under names
    that begin with `step`.
    """
    device, report = torch.device(device), _Report(progress)
    if _same(network, original):
        return _unchanged(network, original, dataset, device, report)
    if dataset is None:
        report.say("Transferring batch-norm statistics")
        found, recalibration = _on_noise(network, original, kept_channels(original, kept), seed, device)
        method = BATCH_NORM_TRANSFER if recalibration["kept"] else "none"
        report.details = {"method": method, "batch_norm": recalibration}
        return Recovered(found, report.finish(device))
    steps = Steps(checkpoint or Checkpoint(), step, network)
    report.say("Measuring the original and the pruned network")
    judge = judge_for(original, dataset, device)
    stages, details = _corrected(network, original, dataset, kept, judge, steps, device, report)
    training = Training(None, None, {"epochs": 0})
    if config.epochs != 0:
        start = stages.best
        training = train(
            start.network,
            start.name,
            start.value,
            original,
            dataset,
            config,
            judge,
            seed,
            device,
            progress,
            steps,
            kept=kept,
        )
        if training.network is not None and stages.take(_FINE_TUNING, training.network, training.value):
            training.details["kept"] = True
    details = {**details, "training": training.details}
    return _reported(network, original, dataset, stages, details, device, report)


def _corrected(
    network: Network,
    original: Network,
    dataset: ImageDataset,
    kept: Kept,
    judge: AccuracyJudge | OutputJudge,
    steps: Steps,
    device: torch.device,
    report: _Report,
) -> tuple[_Stages, dict[str, Any]]:
    """The best of the pruned network and its closed-form corrections, and what to report of them."""
    saved = steps.finished("corrections")
    if saved is not None:
        values, best = saved.values["values"], saved.values["best"]
        found = network.with_tensors(saved.tensors) if saved.tensors else network
        return _Stages(judge, _Stage(best, found, values[best]), dict(values)), {
            "corrections": saved.values["corrections"]
        }
    start = _Stage(_PRUNED, network, judge.value(network))
    stages = _Stages(judge, start, {_PRUNED: start.value})
    report.say("Fitting the layers to the original's outputs")
    tried = corrections(network, original, dataset, kept, device)
    for correction in tried:
        if correction.network is not None:
            stages.take(correction.name, correction.network, judge.value(correction.network))
    details = {"corrections": _described(tried)}
    tensors = {} if stages.best is start else stages.best.network.tensors
    steps.finish("corrections", {"values": stages.values, "best": stages.best.name, **details}, tensors)
    return stages, details


def _reported(
    network: Network,
    original: Network,
    dataset: ImageDataset,
    stages: _Stages,
    details: dict[str, Any],
    device: torch.device,
    report: _Report,
) -> Recovered:
    """The best stage with all figures, which for labelled images are those of the test split, too."""
    judge, best = stages.judge, stages.best
    examples = {name: len(getattr(dataset, name)) for name in ("train", "val", "test")}
    if isinstance(judge, OutputJudge):
        report.details = {
            "method": "none" if best.name == _PRUNED else best.name,
            "inputs": "unlabelled training images",
            "held_out_examples": len(judge.held_out),
            judge.measure: {name: round(value, 6) for name, value in stages.values.items()},
            **details,
            "examples": examples,
        }
        return Recovered(best.network, report.finish(device))
    report.say("Measuring the result on the test images")
    test = {
        name: accuracy(one, dataset.test, dataset, device=device)
        for name, one in (("original", original), ("before", network))
    }
    left_alone = best.name == _PRUNED
    test["after"] = test["before"] if left_alone else accuracy(best.network, dataset.test, dataset, device=device)
    val = {
        "original": judge.of_original,
        "before": stages.values[_PRUNED],
        "after": best.value,
    }
    report.details = {
        "method": best.name,
        judge.measure: stages.values,
        **details,
        "examples": examples,
        "accuracy": {name: {"val": val[name], "test": test[name]} for name in test},
    }
    return Recovered(
        best.network,
        report.finish(device),
        accuracy_original=test["original"],
        accuracy_after=test["after"],
        validation_drop=val["original"] - best.value,
    )


def _unchanged(
    network: Network, original: Network, dataset: ImageDataset | None, device: torch.device, report: _Report
) -> Recovered:
    report.details = {"method": "none", "reason": "Nothing was removed."}
    if dataset is None or not dataset.labelled:
        return Recovered(network, report.finish(device))
    report.say("Measuring the original")
    figures = {name: accuracy(original, getattr(dataset, name), dataset, device=device) for name in ("val", "test")}
    report.details["accuracy"] = {"original": figures, "before": figures, "after": figures}
    return Recovered(network, report.finish(device), figures["test"], figures["test"], 0.0)


def _on_noise(
    network: Network, original: Network, rows: Mapping[str, Tensor], seed: int, device: torch.device
) -> tuple[Network, dict[str, Any]]:
    """Transfer on Gaussian noise, kept if it lowers the output error on other noise."""
    if not rows:
        return network, {"kept": False, "reason": _NO_BATCH_NORM}
    examples = statistics_examples(original, device)
    fit, held_out = (_noise(network, examples, seed, stream) for stream in (0, 1))
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


def _described(tried: Sequence[Correction]) -> dict[str, Any]:
    return {one.name: one.details for one in tried}


def _noise(network: Network, examples: int, seed: int, stream: int) -> Sequence[Inputs]:
    size = min(examples, max(MIN_STATISTICS_BATCH, batch_size_for(network.inputs[0].shape, torch.device("cpu"))))
    count = max(1, round(examples / size))
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
