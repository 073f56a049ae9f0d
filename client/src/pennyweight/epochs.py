"""The epochs of recovery training, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pennyweight.client import Client
from pennyweight.errors import ApiError, ServiceUnreachable, is_passing
from pennyweight.stage_bar import StageBar, duration

_TRAINING_STAGE = "recover"


class EpochLines:
    """Shows a job as it changes, and above it a line for each epoch that has ended since the last look."""

    def __init__(self, client: Client, bar: StageBar) -> None:
        self._client = client
        self._bar = bar
        self._seen = 0
        self._training = False

    def __call__(self, job: Mapping[str, Any]) -> None:
        self._bar(job)
        training = job.get("stage") == _TRAINING_STAGE
        # Once more after the stage, for what was written between the last look and its end.
        if training or self._training:
            try:
                self._tell_new(job["id"])
            except (ServiceUnreachable, ApiError) as error:
                # The wait itself goes through this; the next look tells what this one could not see.
                if not is_passing(error):
                    raise
                training = True
        self._training = training

    def _tell_new(self, job_id: str) -> None:
        for event in self._client.events(job_id, after=self._seen):
            self._seen = event["seq"]
            if event["type"] == "job.epoch":
                self._bar.say(epoch_line(event["data"]))


def epoch_line(epoch: Mapping[str, Any]) -> str:
    """`epoch 3/10  loss 0.412  train 93.10 %  validation 91.20 %  rate 0.0124  1,840 images/s  4 min left`."""
    words = [f"epoch {epoch['epoch']}/{epoch['epochs']}", f"loss {epoch['loss']:.4g}"]
    for name, key in (("train", "train_accuracy"), ("validation", "validation_accuracy")):
        if epoch.get(key) is not None:
            words.append(f"{name} {epoch[key]:.2%}".replace("%", " %"))
    if epoch.get("output_error") is not None:
        words.append(f"output error {epoch['output_error']:.4g}")
    words += [f"rate {epoch['learning_rate']:.3g}", f"{epoch['images_per_s']:,.0f} images/s"]
    return "  ".join([*words, f"{duration(epoch['eta_s'])} left"])
