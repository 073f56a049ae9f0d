"""Sensitivity: what one unit of squared error in a layer's weights does to the network's outputs.

To first order an error Δ of the weights moves the outputs by J·Δ, and errors of different weights are independent enough,
so that the expected squared change is the sum of Δ_j²·E‖J_j‖². A random sign for every output of every image makes the
squared gradient of one sum an unbiased estimate of that (Hutchinson), for all layers in one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.analysis import profile
from core.network import Network
from core.recovery import ImageDataset

_PROBES = 2
_MOST_IMAGES, _LEAST_IMAGES = 128, 2
# Multiply-accumulates to spend: a few seconds of a processor core.
_MACS = 2e11
_PASSES = 1 + 2 * _PROBES


def sensitivities(
    network: Network, names: Sequence[str], dataset: ImageDataset | None, *, seed: int, device: torch.device
) -> dict[str, float]:
    """Per tensor, the mean over its weights: relative squared change of the outputs per squared error of one weight.

    On training images, or on Gaussian noise without a dataset.
    """
    inputs = probe_inputs(network, dataset, seed=seed, device=device)
    module = network.module().to(device)
    own = dict(module.named_parameters())
    held = [name for name in names if name in own]
    weights = [own[name].requires_grad_(True) for name in held]
    generator = torch.Generator().manual_seed(seed)
    sums, energy = [0.0] * len(held), 0.0
    for batch in zip(*(tensor.split(16) for tensor in inputs), strict=True):
        with torch.enable_grad():
            outputs = [value for value in module(*batch) if value.is_floating_point()]
        energy += sum(float(value.detach().double().square().sum()) for value in outputs)
        for _ in range(_PROBES):
            signs = [torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1 for value in outputs]
            loss = sum((value * sign).sum() for value, sign in zip(outputs, signs, strict=True))
            found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            for index, gradient in enumerate(found):
                if gradient is not None:
                    sums[index] += float(gradient.double().square().mean())
    scale = 1 / (_PROBES * max(energy, 1e-30))
    measured = {name: value * scale for name, value in zip(held, sums, strict=True)}
    # What the outputs do not depend on here (or a network that is not finite here) is no reason to spend no bits at all.
    known = [value for value in measured.values() if 0 < value < float("inf")]
    least = min(known) if known else 1.0
    return {name: value if 0 < (value := measured.get(name, 0.0)) < float("inf") else least for name in names}


def probe_inputs(
    network: Network, dataset: ImageDataset | None, *, seed: int, device: torch.device
) -> tuple[Tensor, ...]:
    """A few inputs of the network: training images as it takes them, or noise. As many as their cost allows."""
    count = int(_MACS / (_PASSES * max(1, profile(network).costs.macs)))
    count = max(_LEAST_IMAGES, min(_MOST_IMAGES, count))
    if dataset is None:
        return tuple(tensor.to(device) for tensor in network.random_inputs(count, seed))
    return (dataset.prepare(dataset.train.sample(count).images.to(device)),)
