"""Progress as the engine tells it: which stage, how far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to; `epoch` counts from 1.

    loss: its mean. train_accuracy: on the images as they were trained on (None without labels). validation_accuracy with
    labels, output_error (relative, on held-out images) without. images_per_s: of the training alone. eta_s: how long the
    epochs that are left will take.
    """

    epoch: int
    epochs: int
    loss: float
    train_accuracy: float | None
    validation_accuracy: float | None
    output_error: float | None
    learning_rate: float
    images_per_s: float
    seconds: float
    eta_s: float


@dataclass(frozen=True)
class ProgressEvent:
    """One step forward. `step` of `steps` counts inside the stage; `message` is for a person; `epoch` has just ended."""

    stage: str
    status: Literal["running", "succeeded", "skipped"] = "running"
    step: int | None = None
    steps: int | None = None
    message: str | None = None
    epoch: Epoch | None = None


Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """A listener for callers that do not show progress."""


class Stages:
    """Tells the listener where the pipeline is."""

    def __init__(self, listener: Progress) -> None:
        self.listener = listener

    @contextmanager
    def run(self, stage: str) -> Iterator[None]:
        self.listener(ProgressEvent(stage, "running"))
        yield
        self.listener(ProgressEvent(stage, "succeeded"))
