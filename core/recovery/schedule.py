"""How long, how fast and in what precision to train, from sizes alone: the same on every run of one device.

Defaults suit a trained network that lost channels. The learning rate is well under that of training from scratch, which
would undo what is left; after a short warm-up it falls as a cosine to zero over exactly the planned steps. Until it has
come down a network looks worse than it is, so nothing is stopped early. Small sets get enough steps, large ones and large
networks stay bounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.analysis import profile
from core.network import Network
from core.recovery.config import RecoveryConfig

# Per optimiser.
LEARNING_RATES = {"sgd": 0.02, "adamw": 1e-3}
# By which power of the batch the rate grows. A step of AdamW has the size of its rate, however noisy the gradient is, so a
# small batch asks for less of a cut (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022).
BATCH_POWERS = {"sgd": 1.0, "adamw": 0.5}
WEIGHT_DECAYS = {"sgd": 1e-4, "adamw": 1e-2}
# A step of AdamW, whose size does not depend on the gradient's, moves all layers together by no more than this share.
LARGEST_MOVE = 0.5
# One cycle: the share of the steps in which the rate rises, and what it starts and ends at, as shares of its peak.
_RISING_SHARE = 0.3
_FIRST_SHARE, _LAST_SHARE = 0.04, 1e-4
REFERENCE_BATCH = 128
MIN_BATCH = 8
WARM_UP_STEPS = 50
MAX_EPOCHS = 60
# Default training: this many steps, as long as it costs no more than this many multiply-accumulates (forward and
# backward of the network, forward of the teacher), so that the time is bounded whatever is uploaded.
TARGET_STEPS = {"cpu": 1200, "cuda": 12_000}
MAX_MACS = {"cpu": 4e13, "cuda": 1e16}
# Activations that a training step keeps for its backward pass.
MAX_ACTIVATION_BYTES = {"cpu": 3 * 2**30, "cuda": 12 * 2**30}


@dataclass(frozen=True)
class Schedule:
    """steps: optimiser steps, `steps_per_epoch` of them per pass over the train split (the rest of a batch is left out).

    ema_decay, gradient_clip, patience: None for none of it. largest_move: by how much of their size one step may move the
    outputs of all layers together (`core.recovery.step_sizes`); None for any. The rest is as in `RecoveryConfig`.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    warm_up_steps: int
    distill: bool
    bfloat16: bool
    optimizer: str = "sgd"
    shape: str = "cosine"
    weight_decay: float = WEIGHT_DECAYS["sgd"]
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    gradient_clip: float | None = None
    cutout: float = 0.0
    mixup: float = 0.0
    patience: int | None = None
    largest_move: float | None = None

    @property
    def epochs(self) -> int:
        """Passes over the train split, the last of which may be cut short."""
        return -(-self.steps // self.steps_per_epoch)

    def learning_rate_at(self, step: int) -> float:
        """The rate of a step.

        cosine: linear warm-up, then a cosine that reaches zero after the last step. one_cycle: a cosine up and a cosine
        down (Smith, Topin, "Super-Convergence", 2018, without their cycle of the momentum).
        """
        if self.shape == "one_cycle":
            rising = max(1, round(_RISING_SHARE * self.steps))
            if step < rising:
                return self.learning_rate * _between(_FIRST_SHARE, 1.0, step / rising)
            return self.learning_rate * _between(1.0, _LAST_SHARE, (step - rising) / max(1, self.steps - rising))
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / (self.warm_up_steps + 1)
        done = (step - self.warm_up_steps) / max(1, self.steps - self.warm_up_steps)
        return self.learning_rate * _between(1.0, 0.0, done)

    def as_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "epochs": round(self.steps / self.steps_per_epoch, 3),
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "largest_move": self.largest_move,
            "schedule": self.shape,
            "warm_up_steps": self.warm_up_steps,
            "weight_decay": self.weight_decay,
            "label_smoothing": self.label_smoothing,
            "ema_decay": self.ema_decay,
            "gradient_clip": self.gradient_clip,
            "cutout": self.cutout,
            "mixup": self.mixup,
            "patience": self.patience,
            "distill": self.distill,
            "precision": "bfloat16 autocast" if self.bfloat16 else "float32",
        }


def gentler(schedule: Schedule, factor: float) -> Schedule:
    """The schedule with steps of `factor` times the size."""
    move = schedule.largest_move
    return replace(
        schedule,
        learning_rate=factor * schedule.learning_rate,
        largest_move=None if move is None else factor * move,
    )


def _between(first: float, last: float, done: float) -> float:
    """Half a cosine from `first` to `last`."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


def plan_schedule(
    config: RecoveryConfig,
    examples: int,
    network: Network,
    original: Network,
    device: torch.device,
    *,
    optimizer: str = "sgd",
) -> Schedule:
    """The schedule for `examples` training images; `optimizer` is taken where the user names none.

    batch: 128, less for small sets (16 batches per epoch) and for networks whose activations would not fit. learning
    rate: 0.02 for 128 images, in proportion to the batch; AdamW: 0.001, with its square root. epochs: as many as make
    TARGET_STEPS, at most MAX_EPOCHS and MAX_MACS.
    """
    kind = device.type if device.type in TARGET_STEPS else "cpu"
    batch = min(examples, config.batch_size or _default_batch(examples, network, kind))
    steps_per_epoch = max(1, examples // batch)
    distill = config.distill is not False
    if config.epochs is not None:
        steps = config.epochs * steps_per_epoch
    else:
        epochs = min(MAX_EPOCHS, max(1, round(TARGET_STEPS[kind] / steps_per_epoch)))
        macs_per_step = batch * (3 * profile(network).costs.macs + (profile(original).costs.macs if distill else 0))
        steps = max(1, min(epochs * steps_per_epoch, int(MAX_MACS[kind] / max(1, macs_per_step))))
    optimizer = config.optimizer or optimizer
    precision = config.precision or "auto"
    return Schedule(
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch,
        learning_rate=config.learning_rate or _learning_rate(optimizer, batch),
        warm_up_steps=min(WARM_UP_STEPS, steps // 10),
        distill=distill,
        bfloat16=precision == "bfloat16" or (precision == "auto" and _bfloat16_is_fast(device)),
        optimizer=optimizer,
        shape=config.schedule or "cosine",
        weight_decay=WEIGHT_DECAYS[optimizer] if config.weight_decay is None else config.weight_decay,
        label_smoothing=config.label_smoothing or 0.0,
        ema_decay=config.ema_decay or None,
        gradient_clip=config.gradient_clip,
        cutout=config.cutout or 0.0,
        mixup=config.mixup or 0.0,
        patience=config.patience,
        largest_move=LARGEST_MOVE if optimizer == "adamw" and config.learning_rate is None else None,
    )


def _learning_rate(optimizer: str, batch: int) -> float:
    return LEARNING_RATES[optimizer] * min(1.0, batch / REFERENCE_BATCH) ** BATCH_POWERS[optimizer]


def _default_batch(examples: int, network: Network, kind: str) -> int:
    by_examples = 2 ** int(math.log2(max(1, examples // 16)))
    by_memory = MAX_ACTIVATION_BYTES[kind] // max(1, _activation_bytes(network))
    return max(MIN_BATCH, min(REFERENCE_BATCH, by_examples, by_memory))


def _activation_bytes(network: Network) -> int:
    """float32 bytes of every intermediate value of one image: an upper bound of what the backward pass needs."""
    shapes = (
        getattr(node.meta.get("value"), "shape", ()) for node in network.graph.nodes if node.op == "call_function"
    )
    return 4 * sum(math.prod(shape) for shape in shapes)


def _bfloat16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in the hardware.

    In hardware it makes a training step faster; emulated, slower than float32. Decided by the processor and not by a
    stopwatch, so that a run can be repeated.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
