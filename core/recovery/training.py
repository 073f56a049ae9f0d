"""Fine-tuning with distillation: the pruned network learns from the labels and from the original's outputs.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015:

    loss = 0.9 · T² · KL(original ‖ network, both at temperature T = 4) + 0.1 · cross-entropy

The original's outputs say more of an image than its label does, for the price of the original's forward pass. SGD with
Nesterov momentum; weight decay on matrices and kernels only. Images stay uint8 on the device until their batch is due.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.analysis.schema import operator_name
from core.module_form import to_module, with_trained
from core.network import Network
from core.progress import Progress, ProgressEvent
from core.recovery.augmentation import Augmentation
from core.recovery.dataset import ImageDataset, Split
from core.recovery.evaluation import predict
from core.recovery.schedule import Schedule

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
TEMPERATURE = 4.0
DISTILLATION_WEIGHT = 0.9
_PROGRESS_INTERVAL_S = 0.5
_CURVE_POINTS = 100
# A view cannot merge axes whose elements are not adjacent; channels last would make it fail.
_STRIDED_OPERATORS = frozenset({"view", "view_as", "_unsafe_view", "as_strided"})


@dataclass(frozen=True)
class Trained:
    """network: None if the loss became infinite or NaN. curve: (step, mean loss since the point before)."""

    network: Network | None
    curve: tuple[tuple[int, float], ...]


def fine_tune(
    network: Network,
    original: Network,
    dataset: ImageDataset,
    schedule: Schedule,
    augmentation: Augmentation,
    *,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> Trained:
    """Train a copy of `network` on the train split; deterministic for a seed on one device."""
    with _reproducible(device, seed):
        layout = _memory_format(network, original)
        module = to_module(network).to(device=device, memory_format=layout).train()
        train = dataset.train.to(device)
        teacher = _teacher(original, train, dataset, schedule, augmentation, device)
        optimizer = torch.optim.SGD(_parameter_groups(module), lr=0.0, momentum=MOMENTUM, nesterov=True)
        log = _Log(schedule, progress)
        for step, (rows, images) in enumerate(_batches(train, schedule, augmentation, seed)):
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate_at(step)
            inputs = dataset.prepare(images).contiguous(memory_format=layout)
            with _autocast(schedule, device):
                scores = module(inputs)
            loss = _loss(scores.float(), train.labels[rows], teacher(rows, inputs) if teacher else None)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if not log.add(step, loss.detach()):
                return Trained(None, log.curve)
        return Trained(with_trained(network, module.to(memory_format=torch.contiguous_format)), log.curve)


def _loss(scores: Tensor, labels: Tensor, teacher_scores: Tensor | None) -> Tensor:
    """Mean loss of a batch: scores [n, K] in float32, labels [n]."""
    by_labels = F.cross_entropy(scores, labels)
    if teacher_scores is None:
        return by_labels
    student = F.log_softmax(scores / TEMPERATURE, dim=1)
    teacher = F.log_softmax(teacher_scores / TEMPERATURE, dim=1)
    by_teacher = TEMPERATURE**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return DISTILLATION_WEIGHT * by_teacher + (1 - DISTILLATION_WEIGHT) * by_labels


def _teacher(
    original: Network,
    train: Split,
    dataset: ImageDataset,
    schedule: Schedule,
    augmentation: Augmentation,
    device: torch.device,
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The original's scores for a batch (rows of the train split, prepared inputs); None without distillation."""
    if not schedule.distill:
        return None
    if not augmentation.active and schedule.steps > schedule.steps_per_epoch:
        # The same images come back every epoch: one pass of the original is enough.
        known = predict(original, train.images, dataset, device=device)
        return lambda rows, inputs: known[rows]
    module = original.module().to(device=device, memory_format=_memory_format(original))

    def scores(rows: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad(), _autocast(schedule, device):
            return module(inputs)[0].float()

    return scores


def _batches(
    train: Split, schedule: Schedule, augmentation: Augmentation, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, augmented images) of each step: a new permutation per epoch, full batches only."""
    generator = torch.Generator().manual_seed(seed)
    step = 0
    while step < schedule.steps:
        order = torch.randperm(len(train), generator=generator).to(train.images.device)
        for index in range(min(schedule.steps_per_epoch, schedule.steps - step)):
            rows = order[index * schedule.batch_size : (index + 1) * schedule.batch_size]
            yield rows, augmentation(train.images[rows], generator)
            step += 1


def _parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Kernels and matrices decay; scales, shifts and biases do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _memory_format(*networks: Network) -> torch.memory_format:
    """Channels last, the layout that convolutions compute in, unless an operator insists on strides."""
    operators = {
        operator_name(node.target) for net in networks for node in net.graph.nodes if node.op == "call_function"
    }
    return torch.contiguous_format if operators & _STRIDED_OPERATORS else torch.channels_last


def _autocast(schedule: Schedule, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16)


@contextlib.contextmanager
def _reproducible(device: torch.device, seed: int) -> Iterator[None]:
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


class _Log:
    """Tells the listener, keeps the curve, and notices divergence, reading the loss from the device only now and then."""

    def __init__(self, schedule: Schedule, progress: Progress) -> None:
        self._schedule = schedule
        self._progress = progress
        self._interval = max(1, schedule.steps // _CURVE_POINTS)
        self._started = self._told = time.monotonic()
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._points: list[tuple[int, float]] = []

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        return tuple(self._points)

    def add(self, step: int, loss: Tensor) -> bool:
        """False once the loss is no longer a number."""
        self._sum = self._sum + loss
        self._count += 1
        last = step + 1 == self._schedule.steps
        if last or (step + 1) % self._interval == 0:
            mean = float(self._sum) / self._count
            self._sum, self._count = 0.0, 0
            if not math.isfinite(mean):
                return False
            self._points.append((step + 1, round(mean, 5)))
        now = time.monotonic()
        if last or now - self._told >= _PROGRESS_INTERVAL_S:
            self._told = now
            rate = (step + 1) * self._schedule.batch_size / max(1e-9, now - self._started)
            loss_text = f"loss {self._points[-1][1]:.3f}, " if self._points else ""
            self._progress(
                ProgressEvent(
                    "recover",
                    step=step + 1,
                    steps=self._schedule.steps,
                    message=f"Training: {loss_text}{rate:,.0f} images/s",
                )
            )
        return True
