"""Progress as the engine tells it: which stage, how far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ProgressEvent:
    """One step forward. `step` of `steps` counts inside the stage; `message` is for a person."""

    stage: str
    status: Literal["running", "succeeded", "skipped"] = "running"
    step: int | None = None
    steps: int | None = None
    message: str | None = None


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
