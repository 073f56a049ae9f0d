"""Fine-tuning of shared values: codebooks learn, who shares which value stays.

A weight is codebook[index], so the gradient of a shared value is the sum over its members:

    ∂L/∂c_l = Σ over i with index l of ∂L/∂w_i

Pruned weights keep their index and exactly zero. Adam steps by a share of each layer's own root mean square, so that
a cell of a million members and one of ten move alike. Biases and batch-norms, which are stored whole anyway, learn along.
The teacher is the original: its scores and the labels, or without labels its outputs alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from core.analysis import profile
from core.checkpoint import Checkpoint, Saved
from core.encoding.kernels import Shared
from core.encoding.quantized import QuantizedTensor
from core.encoding.saved import packed, unpacked
from core.module_form import to_module, with_trained
from core.network import Network
from core.recovery import ImageDataset
from core.recovery.evaluation import predict
from core.recovery.steps import Steps
from core.recovery.training_state import pack, unpack

# Per step: of a codebook, relative to the root mean square of its weights; of everything else, as it is.
SHARED_RATE, OTHER_RATE = 0.01, 1e-3
_TEMPERATURE, _TEACHER_WEIGHT = 4.0, 0.9
_BATCH, _LEAST_BATCHES = 128, 8
_STEPS = {"cpu": 300, "cuda": 3000}
_MACS = {"cpu": 6e12, "cuda": 1e15}
_WARM_UP = 0.1
_PROGRESS_INTERVAL_S = 0.5
_STEP = "fine_tuning"


@dataclass(frozen=True)
class Run:
    """How long to train. batch: images per step."""

    steps: int
    steps_per_epoch: int
    batch: int

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Warm-up, then a cosine to zero, as a share of the full rate."""
        warm = max(1, int(_WARM_UP * self.steps))
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


def plan_run(network: Network, examples: int, epochs: int | None, device: torch.device) -> Run:
    """`epochs`, or else as many steps as a short run and a bound on multiply-accumulates allow."""
    kind = device.type if device.type in _STEPS else "cpu"
    batch = max(1, min(_BATCH, examples // _LEAST_BATCHES or examples))
    per_epoch = max(1, examples // batch)
    if epochs is not None:
        return Run(epochs * per_epoch, per_epoch, batch)
    affordable = int(_MACS[kind] / (3 * batch * max(1, profile(network).costs.macs)))
    return Run(max(1, min(_STEPS[kind], 20 * per_epoch, affordable)), per_epoch, batch)


def fine_tune_shared(
    start: Shared,
    original: Network,
    dataset: ImageDataset,
    run: Run,
    *,
    seed: int,
    device: torch.device,
    tell: Callable[[int, str], None],
    steps: Steps | None = None,
) -> Shared | None:
    """The network with learnt values; None if the loss became infinite or NaN.

    steps: where an interrupted training left off.
    """
    steps = steps or Steps(Checkpoint(), "encode", start.network)
    done = steps.finished(_STEP)
    if done is not None:
        return unpacked(start.network, done.values["shared"], done.tensors) if done.values["finite"] else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        pupil = _Pupil(start, device)
        left, first = steps.partial(_STEP), 0
        if left is not None:
            first = pupil.restore(left)
            steps.went_on(_STEP, first)
        loss_of = _loss(original, dataset, run, device)
        told = time.monotonic()
        for step, rows in enumerate(islice(_rows(len(dataset.train), run, seed), first, None), start=first):
            inputs = dataset.prepare(dataset.train.images[rows].to(device))
            loss = loss_of(pupil.outputs(inputs), rows, inputs)
            pupil.learn(loss, run.rate(step))
            if time.monotonic() - told >= _PROGRESS_INTERVAL_S or step + 1 == run.steps:
                told = time.monotonic()
                tell(step + 1, f"Fine-tuning shared values: loss {float(loss.detach()):.3f}")
            if steps.due and step + 1 < run.steps:
                steps.save(_STEP, *pupil.state(step + 1))
        learnt = pupil.result()
    values, arrays = packed(start.network, learnt) if learnt is not None else ({}, {})
    steps.finish(_STEP, {"shared": values, "finite": learnt is not None}, arrays)
    return learnt


class _Pupil:
    """The network while it learns; between steps its `state` is whole."""

    def __init__(self, start: Shared, device: torch.device) -> None:
        self._start, self._device = start, device
        self._module = to_module(start.network).to(device).requires_grad_(False).train()
        self._shared = _Codebooks(start.tensors, device)
        groups = [{"params": [c], "full": SHARED_RATE * scale} for c, scale in self._shared.parameters()]
        others = [p for name, p in self._module.named_parameters() if name not in start.tensors]
        others = [p.requires_grad_(True) for p in others if p.is_floating_point()]
        groups += [{"params": others, "full": OTHER_RATE}] if others else []
        self._optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
        # All that learns or is counted beside the codebooks.
        self._held = {name: value for name, value in self._module.state_dict().items() if name not in start.tensors}
        self._total = torch.zeros((), device=device)

    def outputs(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return functional_call(self._module, self._shared.weights(), (inputs,))

    def learn(self, loss: Tensor, rate: float) -> None:
        """rate: a share of the full one."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["full"] * rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._total = self._total + loss.detach()

    def state(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Values and tensors after so many steps."""
        tensors = {f"codebook/{index}": c.detach() for index, (c, _) in enumerate(self._shared.parameters())}
        tensors |= {f"held/{name}": value for name, value in self._held.items()} | {"loss/total": self._total}
        return pack({"step": step}, tensors, self._optimizer, self._device)

    def restore(self, left: Saved) -> int:
        """The steps that are done."""
        values, parts = unpack(left, self._optimizer, self._device)
        self._total = parts["loss"]["total"].to(self._device)
        with torch.no_grad():
            for name, value in parts.get("held", {}).items():
                self._held[name].copy_(value)
            for index, (codebook, _) in enumerate(self._shared.parameters()):
                codebook.copy_(parts["codebook"][str(index)])
        return values["step"]

    def result(self) -> Shared | None:
        tensors = self._shared.tensors()
        finite = all(np.isfinite(one.codebook).all() for one in tensors.values())
        if not finite or not math.isfinite(float(self._total)):
            return None
        return Shared.of(with_trained(self._start.network, self._module.cpu()), tensors)


class _Gathered(torch.autograd.Function):
    """codebook[indices], whose gradient is summed in float64 by counting: in one order, whatever the processor."""

    @staticmethod
    def forward(ctx, codebook: Tensor, indices: Tensor, zero: int | None) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.levels, ctx.zero = len(codebook), zero
        return codebook[indices]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (indices,) = ctx.saved_tensors
        sums = torch.bincount(indices.reshape(-1), gradient.reshape(-1).double(), minlength=ctx.levels)
        if ctx.zero is not None:
            sums[ctx.zero] = 0
        return sums.to(gradient.dtype), None, None


class _Codebooks:
    """The codebooks as parameters; tensors with one codebook object share one."""

    def __init__(self, tensors: Mapping[str, QuantizedTensor], device: torch.device) -> None:
        self._tensors = tensors
        self._codebooks: dict[int, nn.Parameter] = {}
        self._squares: dict[int, list[float]] = {}
        self._indices: dict[int, Tensor] = {}
        for tensor in tensors.values():
            key = id(tensor.codebook)
            if key not in self._codebooks:
                self._codebooks[key] = nn.Parameter(torch.from_numpy(tensor.codebook.copy()).to(device))
            if id(tensor) not in self._indices:
                self._indices[id(tensor)] = torch.from_numpy(tensor.indices.astype(np.int64)).to(device)
                values = tensor.values()
                alive = values[values != 0].astype(np.float64)
                self._squares.setdefault(key, []).append(float((alive**2).mean()) if alive.size else 0.0)

    def parameters(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Each codebook with the root mean square of what it stands for."""
        for key, parameter in self._codebooks.items():
            yield parameter, math.sqrt(sum(self._squares[key]) / len(self._squares[key]))

    def weights(self) -> dict[str, Tensor]:
        made: dict[int, Tensor] = {}
        for tensor in self._tensors.values():
            if id(tensor) not in made:
                codebook = self._codebooks[id(tensor.codebook)]
                made[id(tensor)] = _Gathered.apply(codebook, self._indices[id(tensor)], tensor.zero)
        return {name: made[id(tensor)] for name, tensor in self._tensors.items()}

    def tensors(self) -> dict[str, QuantizedTensor]:
        """With the learnt values in order again; values that met are one."""
        found: dict[int, QuantizedTensor] = {}
        orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for tensor in self._tensors.values():
            key = id(tensor.codebook)
            if key not in orders:
                learnt = self._codebooks[key].detach().cpu().numpy()
                orders[key] = np.unique(learnt, return_inverse=True)
            codebook, places = orders[key]
            if id(tensor) not in found:
                zero = None if tensor.zero is None else int(places[tensor.zero])
                indices = places[tensor.indices].astype(tensor.indices.dtype)
                found[id(tensor)] = QuantizedTensor(indices, codebook, zero)
        return {name: found[id(tensor)] for name, tensor in self._tensors.items()}


def _loss(
    original: Network, dataset: ImageDataset, run: Run, device: torch.device
) -> Callable[[Tensor | tuple[Tensor, ...], Tensor, Tensor], Tensor]:
    """Of a batch's outputs, its rows in the train split, and its inputs."""
    teacher = _teacher(original, dataset, run, device)

    def by_outputs(outputs: Tensor | tuple[Tensor, ...], rows: Tensor, inputs: Tensor) -> Tensor:
        wanted = teacher(rows, inputs)
        return F.mse_loss(_first(outputs), wanted) / wanted.square().mean().clamp_min(1e-12)

    def by_labels(outputs: Tensor | tuple[Tensor, ...], rows: Tensor, inputs: Tensor) -> Tensor:
        scores = _first(outputs)
        student = F.log_softmax(scores / _TEMPERATURE, dim=1)
        wanted = F.log_softmax(teacher(rows, inputs) / _TEMPERATURE, dim=1)
        told = _TEMPERATURE**2 * F.kl_div(student, wanted, log_target=True, reduction="batchmean")
        labels = dataset.train.labels[rows].to(device)
        return _TEACHER_WEIGHT * told + (1 - _TEACHER_WEIGHT) * F.cross_entropy(scores, labels)

    return by_labels if dataset.labelled else by_outputs


def _teacher(
    original: Network, dataset: ImageDataset, run: Run, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """The original's outputs for a batch: rows of the train split, and its inputs."""
    if run.steps > run.steps_per_epoch:
        # The same images come back: one pass of the original is enough.
        known = predict(original, dataset.train.images, dataset, device=device)
        return lambda rows, inputs: known[rows]
    module = original.module().to(device)

    def outputs(rows: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return _first(module(inputs))

    return outputs


def _first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def _rows(examples: int, run: Run, seed: int) -> Iterator[Tensor]:
    """A new order every epoch, full batches only."""
    generator = torch.Generator().manual_seed(seed)
    step = 0
    while step < run.steps:
        order = torch.randperm(examples, generator=generator)
        for index in range(min(run.steps_per_epoch, run.steps - step)):
            yield order[index * run.batch : (index + 1) * run.batch]
            step += 1
