"""How large a step each layer bears where the optimiser moves every weight alike.

Adam's step has the size of its rate whatever the gradient's. In a layer that reads large numbers of one sign, such as
pixels of 0…255, all weights moving alike move the output by much more than its own size, and training takes apart what it
was to mend. So from the inputs x of a layer and its output y on some images

    rate  ≤  m · rms(y) / (mean |x| · inputs per output)

keeps one step from moving any output by more than a share m of its size, were all of it to add up. What the layers of a deep
network do adds up as well; they share one total (compare You, Gitman, Ginsburg, "LARS", 2017, who bound a step by the size
of the weights, which says nothing of the inputs).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def largest_rates(module: nn.Module, inputs: Tensor, total_move: float) -> dict[str, float]:
    """By name, the largest rate for the weights and biases of convolutions and linear layers; inputs [n, …].

    total_move: share of its own size by which one step may move the output of each layer, summed over the layers.
    """
    sizes: dict[str, tuple[float, float]] = {}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    handles = [
        layer.register_forward_hook(
            lambda _, given, output, name=name: sizes.update({name: (_mean_size(given[0]), _root_mean_square(output))})
        )
        for name, layer in layers.items()
    ]
    module(inputs)
    for handle in handles:
        handle.remove()
    share = total_move / max(1, len(sizes))
    rates: dict[str, float] = {}
    for name, (mean, size) in sizes.items():
        layer = layers[name]
        moved = mean * math.prod(layer.weight.shape[1:])
        if size > 0 and moved > 0:
            rates[f"{name}.weight"] = share * size / moved
            rates[f"{name}.bias"] = share * size
    return rates


def _mean_size(value: Tensor) -> float:
    return float(value.float().abs().mean())


def _root_mean_square(value: Tensor) -> float:
    return float(value.float().square().mean().sqrt())
