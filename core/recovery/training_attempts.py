"""Training as recovery does it: what to train with is chosen and measured, and what does harm is tried once more gently."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from core.analysis import profile
from core.network import Network
from core.progress import Progress, ProgressEvent, silent
from core.recovery.augmentation import Augmentation, choose_augmentation
from core.recovery.config import RecoveryConfig
from core.recovery.dataset import ImageDataset
from core.recovery.features import NO_FEATURES, Features
from core.recovery.judges import AccuracyJudge, OutputJudge
from core.recovery.processes import gpus
from core.recovery.recalibration import Kept
from core.recovery.schedule import Schedule, gentler, plan_schedule
from core.recovery.steps import Steps
from core.recovery.threads import WORTH_MACS, fastest_threads, using
from core.recovery.training import STEP, Lesson, Trained, Trainer, fine_tune, layout_of, reproducible

RETRY_FACTOR = 0.1
# Of the accuracy, on validation images: what a start may lack of the original for full steps to be more than it needs. They
# would first undo what a closed form has found.
NEAR_LOSS = 0.05
NEAR_FACTOR = 0.35
# A process takes seconds to start; a GPU does this much in about as long.
WORTH_PROCESSES_MACS = 1e15


@dataclass(frozen=True)
class Training:
    """network: None if it diverged. value: the judge's figure of it. details: JSON for the report."""

    network: Network | None
    value: float | None
    details: dict[str, Any]


def train(
    network: Network,
    name: str,
    value: float,
    original: Network,
    dataset: ImageDataset,
    config: RecoveryConfig,
    judge: AccuracyJudge | OutputJudge,
    seed: int,
    device: torch.device,
    progress: Progress,
    steps: Steps,
    *,
    kept: Kept,
) -> Training:
    """Train `network`, a stage of this `name` that the judge gives this `value`.

    kept: what is left of the original's tensors. Without labels the layers in the middle are compared as well.
    A start that has little to win back is trained at a smaller rate than others, unless the user names one. If training at
    the default learning rate diverges or does harm, it is tried once more at a tenth of it.
    """
    finished = steps.finished(STEP)
    if finished is not None:
        found = network.with_tensors(finished.tensors) if finished.tensors else None
        return Training(found, finished.values["value"], dict(finished.values["details"]))

    def say(message: str) -> None:
        progress(ProgressEvent("recover", message=message))

    left = steps.partial(STEP)
    if left is not None:
        augmentation, measured = Augmentation(**left.values["augmentation"]), dict(left.values["augmentation_measured"])
    else:
        say("Choosing augmentations by what the original bears")
        augmentation, measured = choose_augmentation(original, dataset, seed=seed, device=device)
    schedule = plan_schedule(
        config, len(dataset.train), network, original, device, optimizer="sgd" if dataset.labelled else "adamw"
    )
    features = NO_FEATURES if dataset.labelled else Features.of(network, original, kept, device)
    lesson = Lesson(original, dataset, schedule, augmentation, judge, seed, device, features)
    lesson = replace(
        lesson,
        channels_last={"channels_last": True, "contiguous": False}.get(config.layout or ""),
        compiled=bool(config.compile),
        processes=_processes(network, schedule, config, device),
    )
    if left is not None:
        # The run goes on as it began, whatever this machine would choose now.
        threads, timed, attempt = (left.values[key] for key in ("threads", "threads_timed", "attempt"))
        schedule = replace(schedule, bfloat16=left.values["bfloat16"])
        lesson = replace(lesson, channels_last=left.values["channels_last"], compiled=left.values["compiled"])
    else:
        say("Measuring how many threads train fastest")
        threads, timed = _threads(network, lesson, config)
        attempt = 0
    if config.learning_rate is None and dataset.labelled and judge.of_original - value <= NEAR_LOSS:
        schedule = gentler(schedule, NEAR_FACTOR)
    attempts = [schedule]
    if config.learning_rate is None:
        attempts.append(gentler(schedule, RETRY_FACTOR))
    with using(threads) if device.type == "cpu" else nullcontext():
        for number in range(attempt, len(attempts)):
            about = {
                "attempt": number,
                "threads": threads,
                "threads_timed": timed,
                "bfloat16": schedule.bfloat16,
                "channels_last": lesson.channels_last,
                "compiled": lesson.compiled,
                "augmentation": asdict(augmentation),
                "augmentation_measured": measured,
            }
            began = time.monotonic()
            lesson = replace(lesson, schedule=attempts[number])
            # What this process saved of the try before is not where the next one begins.
            begun = left if number == attempt else None
            trained = fine_tune(network, lesson, progress=progress, steps=steps, left=begun, about=about)
            seconds = time.monotonic() - began
            reached = None
            if trained.network is not None:
                say("Measuring the trained network")
                reached = judge.value(trained.network)
                if judge.no_worse(reached, value):
                    break
    details = {
        **attempts[number].as_dict(),
        "start": name,
        "kept": False,
        "retried": number > 0,
        "resumed": left is not None,
        "objective": _objective(schedule, dataset, features),
        "augmentation": measured,
        "diverged": trained.network is None,
        "layout": _layout(network, lesson),
        "processes": trained.processes,
        "compiled": trained.compiled,
        "notes": list(trained.notes),
        "threads": threads,
        "threads_timed": timed,
        **_figures(trained, schedule, seconds),
    }
    tensors = trained.network.tensors if trained.network is not None else {}
    steps.finish(STEP, {"value": reached, "details": details}, tensors)
    return Training(trained.network, reached, details)


def _figures(trained: Trained, schedule: Schedule, seconds: float) -> dict[str, Any]:
    training_s = sum(epoch.seconds for epoch in trained.epochs)
    steps = min(schedule.steps, len(trained.epochs) * schedule.steps_per_epoch)
    return {
        "curve": [list(point) for point in trained.curve],
        "epoch_records": [asdict(epoch) for epoch in trained.epochs],
        "best_epoch": trained.best_epoch,
        "seconds": round(seconds, 3),
        "images_per_s": round(steps * schedule.batch_size / training_s, 1) if training_s else None,
    }


def _objective(schedule: Schedule, dataset: ImageDataset, features: Features) -> str:
    if not dataset.labelled:
        layers = f" and {len(features.rows)} of its layers" if features.rows else ""
        return f"the original's outputs{layers}"
    return "labels and the original's outputs" if schedule.distill else "labels"


def _layout(network: Network, lesson: Lesson) -> str:
    return "channels_last" if layout_of(network, lesson) is torch.channels_last else "contiguous"


def _processes(network: Network, schedule: Schedule, config: RecoveryConfig, device: torch.device) -> int:
    """How many train: as many as there are GPUs, if the training is worth their start; never more than images in a batch.

    On the CPU as many as are asked for and have a core each (two may share one).
    """
    if config.processes is not None:
        wanted = min(config.processes, gpus() if device.type == "cuda" else max(2, os.cpu_count() or 1))
    else:
        worth_it = _macs(network, schedule) >= WORTH_PROCESSES_MACS
        wanted = gpus() if device.type == "cuda" and worth_it else 1
    return max(1, min(wanted, schedule.batch_size))


def _macs(network: Network, schedule: Schedule) -> int:
    """Multiply-accumulates of a training, forward and backward."""
    return schedule.steps * schedule.batch_size * 3 * profile(network).costs.macs


def _threads(network: Network, lesson: Lesson, config: RecoveryConfig) -> tuple[int, dict[str, float]]:
    """The thread count to train with and, where it was measured, milliseconds per step with each count."""
    given = torch.get_num_threads()
    if config.threads is not None:
        return config.threads, {}
    schedule = lesson.schedule
    cheap = _macs(network, schedule) < WORTH_MACS
    if lesson.device.type != "cpu" or given == 1 or cheap or lesson.processes > 1:
        return given, {}
    # One epoch, so that no teacher looks at every image first.
    short = replace(schedule, steps=min(schedule.steps, schedule.steps_per_epoch))
    trial = replace(lesson, schedule=short, compiled=False)
    with reproducible(lesson.device, lesson.seed):
        trainer = Trainer(network, trial, silent)
        rows, images = trainer.batches.next()
        chosen, timed = fastest_threads(lambda: trainer.learn(0, rows, images))
    return chosen, {str(count): round(1000 * seconds, 1) for count, seconds in sorted(timed.items())}
