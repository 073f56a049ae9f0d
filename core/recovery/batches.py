"""Which images a training step learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from core.recovery.augmentation import Augmentation
from core.recovery.images import Split
from core.recovery.schedule import Schedule


class Batches:
    """Rows and augmented images of each step: a new permutation per epoch, full batches only."""

    def __init__(self, train: Split, schedule: Schedule, augmentation: Augmentation, seed: int) -> None:
        self._train, self._schedule, self._augmentation = train, schedule, augmentation
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        self._order = torch.empty(0, dtype=torch.int64)

    def next(self) -> tuple[Tensor, Tensor]:
        index = self.step % self._schedule.steps_per_epoch
        if index == 0:
            self._order = torch.randperm(len(self._train), generator=self.generator).to(self._train.images.device)
        rows = self._order[index * self._schedule.batch_size : (index + 1) * self._schedule.batch_size]
        self.step += 1
        return rows, self._augmentation(self._train.images[rows], self.generator)

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), "order": self._order}

    def restore(self, step: int, state: dict[str, Tensor]) -> None:
        self.step = step
        self.generator.set_state(state["generator"].cpu())
        self._order = state["order"].to(self._train.images.device)
