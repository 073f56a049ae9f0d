"""The training loop: one network, one schedule, and a state that can be put down and taken up at any step.

Images stay uint8 on the device until their batch is due. What a step draws at random comes from one generator, so that a
run that was interrupted goes on with the very weights that it would have had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoint import Saved
from core.module_form import to_module, with_trained
from core.network import Network
from core.plain_graph import PlainNetwork
from core.progress import Epoch, Progress, silent
from core.recovery.augmentation import Augmentation, cutout, mixup
from core.recovery.averaging import Average
from core.recovery.batches import Batches
from core.recovery.compiling import compiled
from core.recovery.curve import Curve
from core.recovery.dataset import ImageDataset
from core.recovery.features import NO_FEATURES, Features
from core.recovery.judges import Judge
from core.recovery.objective import Targets, labelled_loss, output_loss
from core.recovery.optimizers import optimizer_for
from core.recovery.outputs import as_outputs
from core.recovery.processes import gathered
from core.recovery.schedule import Schedule
from core.recovery.step_sizes import largest_rates
from core.recovery.steps import Steps
from core.recovery.teacher import memory_format, teacher_for
from core.recovery.team import ALONE, DistantJudge, Team, TeamJudge
from core.recovery.threads import using
from core.recovery.training_state import pack, unpack

STEP = "training"
# Images that tell how large a step each layer bears.
_BOUNDING_EXAMPLES = 16


@dataclass(frozen=True)
class Trained:
    """network: None if the loss became infinite or NaN. curve: (step, mean loss since the point before). best_epoch: with
    patience, the one whose weights these are. processes: how many trained it. compiled: whether the module was. notes: what
    was asked for and could not be done."""

    network: Network | None
    curve: tuple[tuple[int, float], ...]
    epochs: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    processes: int = 1
    compiled: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """Everything that decides what training gives, beside the network it starts from.

    features: layers that are to say what the original's say; of none by default. channels_last: the layout to train in, by
    default the one that suits (`core.recovery.teacher.memory_format`). compiled: whether to try torch.compile. processes:
    how many are to train, with one GPU each where the device is one.
    """

    original: Network
    dataset: ImageDataset
    schedule: Schedule
    augmentation: Augmentation
    judge: Judge
    seed: int
    device: torch.device
    features: Features = NO_FEATURES
    channels_last: bool | None = None
    compiled: bool = False
    processes: int = 1

    def elsewhere(self) -> dict[str, Any]:
        """What another process needs of it, for `there`; can be pickled."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "device"}
        train = self.dataset.train
        return {
            **own,
            "original": PlainNetwork.of(self.original),
            "dataset": replace(self.dataset, val=train, test=train),
            "judge": DistantJudge(self.judge),
            "features": self.features.to(torch.device("cpu")),
        }

    @staticmethod
    def there(sent: dict[str, Any], device: torch.device) -> Lesson:
        features = sent["features"].to(device)
        return Lesson(**{**sent, "original": sent["original"].network(), "features": features, "device": device})


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
    content: dict[str, Any] = {}
    if lesson.processes > 1:
        content = {"network": PlainNetwork.of(network), "lesson": lesson.elsewhere(), "left": left}
    with (
        reproducible(lesson.device, lesson.seed),
        gathered(content, lesson.processes, lesson.seed, lesson.device) as gathering,
        using(max(1, torch.get_num_threads() // gathering.team.size)),
    ):
        trainer = Trainer(network, lesson, progress, gathering.team)
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
        trained = trainer.result()
        return replace(trained, notes=(*trained.notes, gathering.note)) if gathering.note else trained


def attend(content: dict[str, Any], team: Team, device: torch.device) -> None:
    """What a process that is not the first of its team does: the same steps, of which it has its part."""
    lesson = Lesson.there(content["lesson"], device)
    with reproducible(device, lesson.seed):
        trainer = Trainer(content["network"].network(), lesson, silent, team)
        if content["left"] is not None:
            trainer.restore(content["left"])
        for _ in trainer:
            pass


class Trainer:
    """Iterating trains, a step at a time; between steps its `state` is whole."""

    def __init__(self, network: Network, lesson: Lesson, progress: Progress, team: Team = ALONE) -> None:
        self._network, self._team = network, team
        if team.size > 1:
            lesson = replace(lesson, judge=TeamJudge(lesson.judge, team, lesson.device))
        self._lesson = lesson
        schedule, device = lesson.schedule, lesson.device
        self._layout = layout_of(network, lesson)
        self._module = to_module(network).to(device=device, memory_format=self._layout)
        self._call = team.joined(self._module, device, some_unused=len(network.outputs) > 1)
        self._set_mode()
        self._train = lesson.dataset.train.to(device)
        self._teacher = teacher_for(
            lesson.original, self._train, lesson.dataset, schedule, lesson.augmentation, lesson.features, device
        )
        self._optimizer = optimizer_for(self._module, schedule, self._largest_rates())
        self._average = Average(self._module, schedule.ema_decay) if schedule.ema_decay else None
        self.batches = Batches(self._train, schedule, lesson.augmentation, lesson.seed)
        scales = lesson.judge.scales
        self._scales = scales.to(device) if scales is not None else None
        self._notes: tuple[str, ...] = ()
        self._compiled = self._compile() if lesson.compiled else False
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
        found, best = None, None
        if not self._diverged:
            found = with_trained(self._network, module.to(memory_format=torch.contiguous_format))
            best = self._best[1] if self._best else None
        points, epochs = tuple(self.curve.points), tuple(self.curve.epochs)
        return Trained(found, points, epochs, best, self._team.size, self._compiled, self._notes)

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
            group["lr"] = group.get("share", 1.0) * schedule.learning_rate_at(step)
        inputs = dataset.prepare(images)
        labels = self._train.labels[rows] if dataset.labelled else None
        mixed = None
        if schedule.cutout:
            inputs = cutout(inputs, schedule.cutout, self.batches.generator)
        if schedule.mixup:
            inputs, others, share = mixup(inputs, schedule.mixup, self.batches.generator)
            mixed = (labels[others], share) if labels is not None else None
        # Everybody draws for the whole batch and learns from a part of it.
        count, own = len(inputs), self._team.part(len(inputs))
        rows, inputs = rows[own], inputs[own].contiguous(memory_format=self._layout)
        labels = labels[own] if labels is not None else None
        targets = Targets(labels, (mixed[0][own], mixed[1]) if mixed else None)
        self._team.begin_step(step)
        features = self._lesson.features
        with autocast(schedule, self._lesson.device), features.watch(self._module) as layers:
            outputs = as_outputs(self._call(inputs))
        said = self._teacher(rows, inputs) if self._teacher else None
        if labels is None:
            loss = output_loss(outputs, said.outputs, self._scales)
        else:
            loss = labelled_loss(outputs[0], targets, said.outputs[0] if said else None, schedule.label_smoothing)
        if features.rows and said is not None:
            loss = loss + features.loss(layers, said.layers)
        self._optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over processes, whose parts may differ in size by one.
        share = len(rows) / count
        (loss * (share * self._team.size)).backward()
        if schedule.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._module.parameters(), schedule.gradient_clip)
        self._optimizer.step()
        if self._average:
            self._average.update(self._module, step)
        right = (outputs[0].detach().argmax(dim=1) == labels).sum() if labels is not None else torch.zeros(())
        figures = torch.stack([loss.detach() * share, right.to(loss)])
        whole_loss, whole_right = self._team.summed(figures).unbind()
        self._diverged = not self.curve.add(step, whole_loss, whole_right if labels is not None else None)

    def _compile(self) -> bool:
        """Call the compiled module from now on, if that can be had."""
        if self._team.size > 1 or self._lesson.features.rows:
            self._notes += ("Trained without torch.compile, which is for one process that compares outputs alone.",)
            return False
        rows = torch.arange(self._lesson.schedule.batch_size, device=self._train.images.device)
        inputs = self._lesson.dataset.prepare(self._train.images[rows]).contiguous(memory_format=self._layout)
        mode = autocast(self._lesson.schedule, self._lesson.device)
        self._call, note = compiled(self._module, inputs, mode)
        self._notes += (note,) if note else ()
        return note is None

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

    def _largest_rates(self) -> dict[str, float]:
        move = self._lesson.schedule.largest_move
        if move is None:
            return {}
        rows = torch.arange(min(_BOUNDING_EXAMPLES, len(self._train)), device=self._train.images.device)
        inputs = self._lesson.dataset.prepare(self._train.images[rows]).contiguous(memory_format=self._layout)
        self._module.eval()
        rates = largest_rates(self._module, inputs, move)
        self._set_mode()
        return rates

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


def layout_of(network: Network, lesson: Lesson) -> torch.memory_format:
    """The layout to train in; a network with views trains in the usual one, whatever was asked for."""
    fits = memory_format(network, lesson.original)
    return fits if lesson.channels_last is not False else torch.contiguous_format


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
