"""What the user may fix of recovery training; everything left out is chosen by the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import EngineError

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "one_cycle")
PRECISIONS = ("auto", "float32", "bfloat16")
LAYOUTS = ("auto", "contiguous", "channels_last")
# Per number, the least and the largest value.
BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (0, 1000),
    "learning_rate": (1e-9, 10),
    "batch_size": (2, 8192),
    "weight_decay": (0, 1),
    "label_smoothing": (0, 0.9),
    "ema_decay": (0, 0.99999),
    "gradient_clip": (1e-6, 1e6),
    "cutout": (0, 0.9),
    "mixup": (0, 10),
    "patience": (1, 1000),
    "threads": (1, 1024),
    "processes": (1, 16),
}
CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "layout": LAYOUTS}


@dataclass(frozen=True)
class RecoveryConfig:
    """None leaves a value to `core.recovery.schedule.plan_schedule`.

    distill: learn from the original's outputs, too. weight_decay: of kernels and matrices only. ema_decay: of a moving
    average of the weights, which is then what training gives. gradient_clip: largest norm of the whole gradient. cutout:
    side of the square that is blanked, as a share of the image's shorter side. mixup: α of the Beta distribution. patience:
    epochs without a better validation after which training stops with its best epoch. layout: of images and kernels in
    memory; a network with views trains in the contiguous one. compile: use torch.compile, where it works. threads: on the
    CPU, instead of what is measured to be fastest. processes: by default one for each GPU, and one on the CPU. Raises
    EngineError("invalid_request") for a value out of bounds.
    """

    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    distill: bool | None = None
    optimizer: str | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    ema_decay: float | None = None
    gradient_clip: float | None = None
    cutout: float | None = None
    mixup: float | None = None
    patience: int | None = None
    precision: str | None = None
    layout: str | None = None
    compile: bool | None = None
    threads: int | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and least <= value <= most):
                raise _invalid(name, f"recovery.{name} is {value!r}; it goes from {least:g} to {most:g}.")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise _invalid(name, f"recovery.{name} is {value!r}; known: {', '.join(known)}.")

    @property
    def trains(self) -> bool:
        """Whether training is asked for, not merely left to the engine or switched off."""
        return self.epochs != 0 and self != RecoveryConfig()

    @property
    def needs_labels(self) -> str | None:
        """The first option that means nothing without labels."""
        if self.epochs != 0 and self.label_smoothing:
            return "label_smoothing"
        return "distill" if self.epochs != 0 and self.distill is False else None


def _invalid(name: str, message: str) -> EngineError:
    return EngineError("invalid_request", message, param=f"/recovery/{name}")
