"""What training tells of itself: progress, the loss along the way, and one record per epoch."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from core.progress import Epoch, Progress, ProgressEvent
from core.recovery.schedule import Schedule

_PROGRESS_INTERVAL_S = 0.5
_POINTS = 100


class Curve:
    """Notices divergence, too; the loss is read from the device only now and then.

    points: (step, mean loss since the point before). epochs: as they ended.
    """

    def __init__(self, schedule: Schedule, progress: Progress) -> None:
        self._schedule = schedule
        self._progress = progress
        self._interval = max(1, schedule.steps // _POINTS)
        self.points: list[tuple[int, float]] = []
        self.epochs: list[Epoch] = []
        # Since the last point, and since the epoch began: sums over steps.
        self._sums = {"point": torch.zeros(()), "epoch": torch.zeros(()), "right": torch.zeros(())}
        self._point_steps = self._epoch_steps = 0
        # Of this epoch, in whichever process; of this process alone.
        self._epoch_s = 0.0
        self._step_began = self._told = time.monotonic()

    def add(self, step: int, loss: Tensor, right: Tensor | None) -> bool:
        """Take a step in: its loss, and how many of its images were right. False once the loss is no longer a number."""
        self._sums["point"] = self._sums["point"].to(loss.device) + loss
        self._sums["epoch"] = self._sums["epoch"].to(loss.device) + loss
        if right is not None:
            self._sums["right"] = self._sums["right"].to(loss.device) + right
        self._point_steps += 1
        self._epoch_steps += 1
        last = step + 1 == self._schedule.steps
        if last or (step + 1) % self._interval == 0:
            mean = float(self._sums["point"]) / self._point_steps
            self._sums["point"], self._point_steps = torch.zeros(()), 0
            if not math.isfinite(mean):
                return False
            self.points.append((step + 1, round(mean, 5)))
        now = time.monotonic()
        self._epoch_s += now - self._step_began
        self._step_began = now
        if last or now - self._told >= _PROGRESS_INTERVAL_S:
            self._told = now
            loss_text = f"loss {self.points[-1][1]:.3f}, " if self.points else ""
            message = f"Training: {loss_text}{self._images_per_s():,.0f} images/s"
            self._progress(ProgressEvent("recover", step=step + 1, steps=self._schedule.steps, message=message))
        return True

    def skip(self) -> None:
        """What was done since the last step is not training: a look at validation images, a checkpoint."""
        self._step_began = time.monotonic()

    def end_epoch(self, step: int, value: float, labelled: bool) -> bool:
        """Close the epoch that ended with `step`, `value` being the judge's figure. False if its loss is no number."""
        loss = float(self._sums["epoch"]) / self._epoch_steps
        if not (math.isfinite(loss) and math.isfinite(value)):
            return False
        images = self._epoch_steps * self._schedule.batch_size
        left = (self._schedule.steps - step - 1) / self._epoch_steps
        epoch = Epoch(
            epoch=len(self.epochs) + 1,
            epochs=self._schedule.epochs,
            loss=round(loss, 6),
            train_accuracy=round(float(self._sums["right"]) / images, 6) if labelled else None,
            validation_accuracy=round(value, 6) if labelled else None,
            output_error=None if labelled else round(value, 6),
            learning_rate=self._schedule.learning_rate_at(step),
            images_per_s=round(self._images_per_s(), 1),
            seconds=round(self._epoch_s, 3),
            eta_s=round(left * self._epoch_s, 1),
        )
        self.epochs.append(epoch)
        self._sums["epoch"], self._sums["right"] = torch.zeros(()), torch.zeros(())
        self._epoch_steps, self._epoch_s = 0, 0.0
        named = "accuracy" if labelled else "output error"
        message = f"Epoch {epoch.epoch} of {epoch.epochs}: loss {loss:.3f}, held-out {named} {value:.4f}"
        self._progress(
            ProgressEvent("recover", step=step + 1, steps=self._schedule.steps, message=message, epoch=epoch)
        )
        return True

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Values and tensors of everything that goes on after an interruption."""
        values = {
            "points": [list(point) for point in self.points],
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "point_steps": self._point_steps,
            "epoch_steps": self._epoch_steps,
            "epoch_s": self._epoch_s,
        }
        return values, dict(self._sums)

    def restore(self, values: dict[str, Any], sums: dict[str, Tensor]) -> None:
        self.points = [(int(step), float(loss)) for step, loss in values["points"]]
        self.epochs = [Epoch(**epoch) for epoch in values["epochs"]]
        self._point_steps, self._epoch_steps = values["point_steps"], values["epoch_steps"]
        self._epoch_s = values["epoch_s"]
        self._sums = dict(sums)

    def _images_per_s(self) -> float:
        return self._epoch_steps * self._schedule.batch_size / max(1e-9, self._epoch_s)
