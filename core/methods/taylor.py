"""Taylor: channels whose removal would change the loss least, to first order, go first.

Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning (arXiv 1906.10771). Removing a
set of weights W sets them to zero; to first order the loss changes by Σ g·w, and the importance is its square, averaged
over batches:

    I = mean over batches of (Σ_{w ∈ W} g_w · w)²,

summed over the tensors in which a coupled component has slices (every trainable one: kernels, biases, batch-norm scales).

With labels the loss is cross-entropy on training images. Without labels it would be the distance of the outputs from
their own present values, whose gradient is zero; its second-order term is not. For outputs f and ε ~ N(0, 1), the square
of Σ g·w of the random projection ⟨f, ε⟩ is on average ‖Jw‖²: how much the outputs themselves would move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.analysis import ChannelAnalysis, WeightSlices
from core.analysis.trace import storage_key
from core.methods.method import Evidence, Method
from core.methods.options import PlanConfig
from core.methods.slices import component_totals, prunable_slices
from core.network import Network
from core.recovery.dataset import ImageDataset

_BATCH = 32


@dataclass(frozen=True)
class TaylorConfig(PlanConfig):
    """examples: training images that the gradients are taken on."""

    examples: int = 512


def scores(network: Network, analysis: ChannelAnalysis, config: TaylorConfig, evidence: Evidence) -> np.ndarray:
    """float64 per component. Deterministic for a seed, which draws the projections, on one device."""
    dataset, device = evidence.dataset, evidence.device
    places = prunable_slices(network, analysis, lambda tensor: tensor.is_floating_point() and tensor.ndim > 0)
    module = network.module().to(device)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    # Names that share a tensor are one parameter to the score, so their gradients add up.
    names: dict[object, list[str]] = {}
    for name in parameters:
        names.setdefault(storage_key(network.tensors[name]), []).append(name)
    watched = {name: names[storage_key(network.tensors[name])] for name in places if name in parameters}
    leaves = [one for shared in watched.values() for one in shared]
    for name in leaves:
        parameters[name].requires_grad_(True)
    total, batches = np.zeros(analysis.components), 0
    for inputs, loss_of in _batches(dataset, config.examples, evidence):
        gradients = torch.autograd.grad(
            loss_of(module(inputs)), [parameters[name] for name in leaves], allow_unused=True
        )
        by_name = dict(zip(leaves, gradients, strict=True))
        for name, shared in watched.items():
            found = [by_name[one] for one in shared if by_name[one] is not None]
            if found:
                product = (sum(found) * parameters[name].detach()).double()
                total += _squares(product, places[name], analysis.components)
        batches += 1
    return total / max(1, batches)


def _squares(product: Tensor, places: Sequence[WeightSlices], components: int) -> np.ndarray:
    """Per component the squares of Σ g·w over its slices along each axis of one tensor."""
    total = np.zeros(components)
    for slices in places:
        others = [axis for axis in range(product.ndim) if axis != slices.axis]
        per_slice = product.sum(others) if others else product
        total += component_totals(slices, per_slice, components) ** 2
    return total


def _batches(
    dataset: ImageDataset, examples: int, evidence: Evidence
) -> Iterator[tuple[Tensor, Callable[[tuple[Tensor, ...]], Tensor]]]:
    """(inputs, loss of the outputs) of every batch, on the evidence's device."""
    train = dataset.train.sample(examples).to(evidence.device)
    generator = torch.Generator().manual_seed(evidence.seed)
    for start in range(0, len(train), _BATCH):
        inputs = dataset.prepare(train.images[start : start + _BATCH])
        if train.labels is not None:
            labels = train.labels[start : start + _BATCH]
            yield inputs, lambda outputs, labels=labels: functional.cross_entropy(outputs[0], labels)
        else:
            yield inputs, lambda outputs: _projection(outputs, generator)


def _projection(outputs: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
    """⟨f, ε⟩ over all outputs of a batch, per √example."""
    drawn = [torch.randn(one.shape, generator=generator).to(one.device) for one in outputs]
    return sum((one * noise).sum() for one, noise in zip(outputs, drawn, strict=True)) / len(outputs[0]) ** 0.5


METHOD = Method(
    type="taylor",
    title="First-order Taylor importance",
    description=(
        "Removes the channels whose removal would change the loss least, to first order; needs images, and uses their "
        "labels where there are any."
    ),
    paper="arXiv:1906.10771",
    options={
        "examples": {
            "type": "integer",
            "minimum": 1,
            "maximum": 100_000,
            "default": 512,
            "description": "Training images that the gradients are taken on.",
        },
    },
    config_type=TaylorConfig,
    score=scores,
    needs_data=True,
)
