"""The training loop: one network, one schedule, and a state that can be put down and taken up at any step.

Images stay uint8 on the device until their batch is due. Weight decay is on matrices and kernels only. What a step draws
at random comes from one generator, so that a run that was interrupted goes on with the very weights that it would have had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoint import Saved
from core.module_form import to_module, with_trained
from core.network import Network
from core.progress import Epoch, Progress
from core.recovery.augmentation import Augmentation, cutout, mixup
from core.recovery.averaging import Average
from core.recovery.curve import Curve
from core.recovery.dataset import ImageDataset
from core.recovery.images import Split
from core.recovery.judges import AccuracyJudge, OutputJudge
from core.recovery.objective import Targets, labelled_loss, output_loss
from core.recovery.outputs import as_outputs
from core.recovery.schedule import Schedule
from core.recovery.steps import Steps
from core.recovery.teacher import memory_format, teacher_for
from core.recovery.training_state import pack, unpack

MOMENTUM = 0.9
STEP = "training"


@dataclass(frozen=True)
class Trained:
    """network: None if the loss became infinite or NaN. curve: (step, mean loss since the point before). best_epoch: with
    patience, the one whose weights these are."""

    network: Network | None
    curve: tuple[tuple[int, float], ...]
    epochs: tuple[Epoch, ...] = ()
    best_epoch: int | None = None


@dataclass(frozen=True)
class Lesson:
    """Everything that decides what training gives, beside the network it starts from."""

    original: Network
    dataset: ImageDataset
    schedule: Schedule
    augmentation: Augmentation
    judge: AccuracyJudge | OutputJudge
    seed: int
    device: torch.device


def fine_tune(
    network: Network,
    lesson: Lesson,
    *,
    progress: Progress,
    steps: Steps,
    left: Saved | None,
    about: dict[str, Any],
) -> Trained:
    """Train a copy of `network` on the train split; deterministic for a seed on one device, precision and thread count.

    steps: where the state is kept when it is due. left: the state in which an interrupted process left this training.
    about: what is kept with it for the caller.
    """
    with reproducible(lesson.device, lesson.seed):
        trainer = Trainer(network, lesson, progress)
        if left is not None:
            trainer.restore(left)
        for step in trainer:
            if left is not None:
                # Said once the state has carried a step, and not before: one that cannot would be said again and again.
                steps.went_on(STEP, left.values["step"])
            if steps.due:
                values, tensors = trainer.state(step)
                steps.save(STEP, {**values, **about}, tensors)
                trainer.curve.skip()
        return trainer.result()


class Trainer:
    """Iterating trains, a step at a time; between steps its `state` is whole."""

    def __init__(self, network: Network, lesson: Lesson, progress: Progress) -> None:
        self._network, self._lesson = network, lesson
        schedule, device = lesson.schedule, lesson.device
        self._layout = memory_format(network, lesson.original)
        self._module = to_module(network).to(device=device, memory_format=self._layout)
        self._set_mode()
        self._train = lesson.dataset.train.to(device)
        self._teacher = teacher_for(lesson.original, self._train, lesson.dataset, schedule, lesson.augmentation, device)
        self._optimizer = optimizer_for(self._module, schedule)
        self._average = Average(self._module, schedule.ema_decay) if schedule.ema_decay else None
        self.batches = Batches(self._train, schedule, lesson.augmentation, lesson.seed)
        self._scales = lesson.judge.scales.to(device) if isinstance(lesson.judge, OutputJudge) else None
        self.curve = Curve(schedule, progress)
        self._best: tuple[float, int] | None = None
        self._best_state: dict[str, Tensor] = {}
        self._diverged = self._stopped = False

    def __iter__(self) -> Iterator[int]:
        schedule = self._lesson.schedule
        while self.batches.step < schedule.steps and not (self._diverged or self._stopped):
            step = self.batches.step
            self.learn(step, *self.batches.next())
            ended = (step + 1) % schedule.steps_per_epoch == 0 or step + 1 == schedule.steps
            if ended and not self._diverged:
                self._end_epoch(step)
            yield step

    def result(self) -> Trained:
        module = self._average.module if self._average else self._module
        if self._best_state:
            module.load_state_dict(self._best_state)
        points, epochs = tuple(self.curve.points), tuple(self.curve.epochs)
        if self._diverged:
            return Trained(None, points, epochs)
        plain = module.to(memory_format=torch.contiguous_format)
        return Trained(with_trained(self._network, plain), points, epochs, self._best[1] if self._best else None)

    def state(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Values and tensors after `step`."""
        curve, sums = self.curve.state()
        values = {"step": step + 1, "curve": curve, "best": list(self._best) if self._best else None}
        parts = {
            "model": self._module.state_dict(),
            "average": self._average.module.state_dict() if self._average else {},
            "best": self._best_state,
            "sums": sums,
            "batches": self.batches.state(),
        }
        tensors = {f"{part}/{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
        return pack(values, tensors, self._optimizer, self._lesson.device)

    def restore(self, saved: Saved) -> None:
        values, parts = unpack(saved, self._optimizer, self._lesson.device)
        self._module.load_state_dict(parts["model"])
        if self._average:
            self._average.module.load_state_dict(parts["average"])
        self._best = tuple(values["best"]) if values["best"] else None
        self._best_state = parts.get("best", {})
        self.curve.restore(values["curve"], parts["sums"])
        self._stopped = self._out_of_patience()
        self.batches.restore(values["step"], parts["batches"])

    def learn(self, step: int, rows: Tensor, images: Tensor) -> None:
        """One optimiser step on a batch: rows of the train split, and its augmented images."""
        schedule, dataset = self._lesson.schedule, self._lesson.dataset
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(step)
        inputs = dataset.prepare(images)
        labels = self._train.labels[rows] if dataset.labelled else None
        targets = Targets(labels)
        if schedule.cutout:
            inputs = cutout(inputs, schedule.cutout, self.batches.generator)
        if schedule.mixup:
            inputs, others, share = mixup(inputs, schedule.mixup, self.batches.generator)
            targets = Targets(labels, (labels[others], share) if labels is not None else None)
        inputs = inputs.contiguous(memory_format=self._layout)
        with autocast(schedule, self._lesson.device):
            outputs = self._module(inputs)
        outputs = as_outputs(outputs)
        teacher = self._teacher(rows, inputs) if self._teacher else None
        if labels is None:
            loss = output_loss(outputs, teacher, self._scales)
        else:
            loss = labelled_loss(outputs[0], targets, teacher[0] if teacher else None, schedule.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if schedule.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._module.parameters(), schedule.gradient_clip)
        self._optimizer.step()
        if self._average:
            self._average.update(self._module, step)
        right = (outputs[0].detach().argmax(dim=1) == labels).sum() if labels is not None else None
        self._diverged = not self.curve.add(step, loss.detach(), right)

    def _end_epoch(self, step: int) -> None:
        judge, schedule = self._lesson.judge, self._lesson.schedule
        module = self._average.module if self._average else self._module
        value = judge.value(module, quick=schedule.patience is None)
        self._diverged = not self.curve.end_epoch(step, value, self._lesson.dataset.labelled)
        if schedule.patience is not None and not self._diverged:
            epoch = len(self.curve.epochs)
            if self._best is None or (judge.no_worse(value, self._best[0]) and value != self._best[0]):
                self._best = (value, epoch)
                self._best_state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            self._stopped = self._out_of_patience()
        self._set_mode()
        self.curve.skip()

    def _out_of_patience(self) -> bool:
        patience = self._lesson.schedule.patience
        return patience is not None and self._best is not None and len(self.curve.epochs) - self._best[1] >= patience

    def _set_mode(self) -> None:
        """Training mode; where the original is only imitated, batch-norms keep the statistics that the refit suits."""
        self._module.train()
        if not self._lesson.dataset.labelled:
            for module in self._module.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()


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


def optimizer_for(module: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    groups = parameter_groups(module, schedule.weight_decay)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0)
    return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Kernels and matrices decay; scales, shifts and biases do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def autocast(schedule: Schedule, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16)


@contextlib.contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seeded dropout and, on a GPU, kernels that add in a fixed order; the caller's random state is given back."""
    cuda = device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[device] if cuda else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        if cuda
        else contextlib.nullcontext(),
    ):
        torch.manual_seed(seed)
        yield
