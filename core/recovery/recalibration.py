"""Batch-norm statistics after pruning, transferred from the original's by ratio; works without data.

Removing channels changes the mean and variance in front of every later batch-norm, and the running statistics no longer
fit. The usual remedy re-estimates them on training images. On synthetic inputs that destroys a network, because noise
has other statistics than images. What does carry over from noise to images is the *change*: with μ, σ² of a channel in
front of its batch-norm, measured on the same noise in the original (o) and in the pruned network (p), each layer
normalised by the batch so that no earlier drift is counted twice,

    var  ←  var · σp²/σo²                mean  ←  μp + (mean − μo) · σp/σo

With real images as the inputs the same formula also beats plain re-estimation, which adds the sampling noise of its few
images. Top-1 accuracy in percent on 2,000 CIFAR-10 test images, pruned by magnitude to a share of the MACs, no training
(`python -m benchmarks.data_free_recalibration --data DATA`; 256 samples each; 1/f noise does as well as Gaussian):

              MACs    as pruned   noise: anew   noise: transfer   images: anew   images: transfer   original
    ResNet-20  50 %        17.8           8.0              49.4           51.3               52.8       92.3
               70 %        58.7          11.5              80.0           79.9               81.9
               90 %        89.5          14.0              90.5           87.2               90.7
    ResNet-56  50 %        12.1          17.3              69.5           69.2               73.0       94.1
               70 %        75.3          27.4              90.5           89.3               91.4
               90 %        93.8          10.3              94.2           92.0               94.2

The guard needs no images either. Judged by its outputs on noise, a network with image statistics says nothing. So both
networks get the statistics of one noise sample, the pruned one once as it would stand without the correction (the
original's) and once with it (its own), and the output errors against the original on *another* noise sample are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.analysis.schema import bind, operator_name
from core.network import Network

Inputs = tuple[Tensor, ...]
# Per tensor that was cut, what is left of it: the kept indices along each axis, None for a whole axis.
Kept = Mapping[str, tuple[np.ndarray | None, ...]]
# A channel that all but stops (or starts) varying under noise says nothing about images beyond "much less" ("much more").
_MAX_RATIO = 1e4
# Share of a layer's mean variance that is added to both sides of a ratio, so that dead channels keep their statistics.
_RATIO_FLOOR = 1e-6


@dataclass(frozen=True)
class Statistics:
    """Mean and variance per channel in front of one batch-norm; `var_name` is the tensor that holds its variance."""

    mean: Tensor
    var: Tensor
    var_name: str


def statistics(network: Network, batches: Sequence[Inputs], device: torch.device) -> dict[str, Statistics]:
    """Per batch-norm (by the name of its running mean): what reaches it when every batch-norm normalises by the batch."""
    observer = _Observer(network.module().to(device))
    with torch.no_grad():
        for inputs in batches:
            observer.run(*(value.to(device) for value in inputs))
    return {name: total.statistics() for name, total in observer.totals.items()}


def transfer(
    network: Network,
    observed: Mapping[str, Statistics],
    reference: Mapping[str, Statistics],
    rows: Mapping[str, Tensor],
) -> Network:
    """`network` with its running statistics moved by the observed change (see the module's text).

    observed, reference: `statistics` of the network and of its original on the same inputs. rows: `kept_channels`.
    """
    tensors = dict(network.tensors)
    for name, chosen in rows.items():
        now, before = observed[name], reference[name]
        mean_before, var_before = before.mean[chosen], before.var[chosen]
        floor = _RATIO_FLOOR * before.var.mean() + torch.finfo(before.var.dtype).tiny
        ratio = ((now.var + floor) / (var_before + floor)).clamp(1 / _MAX_RATIO, _MAX_RATIO)
        running_mean, running_var = tensors[name], tensors[now.var_name]
        tensors[name] = (now.mean + (running_mean - mean_before) * ratio.sqrt()).to(running_mean.dtype)
        tensors[now.var_name] = (running_var * ratio).to(running_var.dtype)
    return network.with_tensors(tensors)


def transfer_guard(
    network: Network,
    original: Network,
    observed: Mapping[str, Statistics],
    reference: Mapping[str, Statistics],
    rows: Mapping[str, Tensor],
    held_out: Sequence[Inputs],
    device: torch.device,
) -> tuple[float, float]:
    """Relative output error against the original on held-out noise, (without, with) the correction.

    All three networks carry statistics of the noise: the original its own, the pruned one first the original's, then its
    own. See the module's text.
    """
    target = _outputs(_with_statistics(original, reference), held_out, device)
    uncorrected = {
        name: Statistics(found.mean[rows[name]], found.var[rows[name]], found.var_name)
        for name, found in reference.items()
    }
    errors = []
    for candidate in (uncorrected, observed):
        outputs = _outputs(_with_statistics(network, candidate), held_out, device)
        distance = sum((a - b).square().sum() for a, b in zip(outputs, target, strict=True))
        errors.append(float((distance / sum(b.square().sum() for b in target)).sqrt()))
    return errors[0], errors[1]


def kept_channels(original: Network, kept: Kept) -> dict[str, Tensor]:
    """Per batch-norm of `original` (by the name of its running mean), the indices of the channels that are left."""
    rows = {}
    for call in _batch_norm_calls(original):
        name = call["running_mean"].target
        (chosen,) = kept.get(name, (None,))
        rows[name] = torch.arange(len(original.tensors[name])) if chosen is None else torch.from_numpy(chosen)
    return rows


def _batch_norm_calls(network: Network) -> list[Mapping[str, object]]:
    """The bound arguments of every batch-norm that normalises by running statistics."""
    return [
        call
        for node in network.graph.nodes
        if node.op == "call_function" and operator_name(node.target) == "batch_norm"
        for call in [bind(node)]
        if _has_statistics(call)
    ]


def _has_statistics(call: Mapping[str, object]) -> bool:
    vectors = [call[name] for name in ("weight", "bias", "running_mean", "running_var")]
    stored = all(node is None or getattr(node, "op", None) == "get_attr" for node in vectors)
    return stored and call["running_mean"] is not None and not call["training"]


class _Total:
    """Running sums of one batch-norm's input statistics over batches (and over calls, where it is used twice)."""

    def __init__(self, var_name: str) -> None:
        self._var_name = var_name
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._square: Tensor | float = 0.0

    def add(self, mean: Tensor, var: Tensor) -> None:
        self._count += 1
        self._mean = self._mean + mean.double()
        self._square = self._square + (var + mean * mean).double()

    def statistics(self) -> Statistics:
        mean = self._mean / self._count
        var = (self._square / self._count - mean * mean).clamp(min=0)
        return Statistics(mean.cpu(), var.cpu(), self._var_name)


class _Observer(torch.fx.Interpreter):
    """Runs a network with every batch-norm normalising by the batch, and watches what reaches each."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.totals: dict[str, _Total] = {}

    def run_node(self, node: torch.fx.Node) -> object:
        if node.op != "call_function" or operator_name(node.target) != "batch_norm":
            return super().run_node(node)
        call = bind(node)
        if not _has_statistics(call):
            return super().run_node(node)
        value, weight, bias = (
            self.env[call[name]] if call[name] is not None else None for name in ("input", "weight", "bias")
        )
        axes = [axis for axis in range(value.ndim) if axis != 1]
        var, mean = torch.var_mean(value, dim=axes, correction=0)
        name, var_name = call["running_mean"].target, call["running_var"].target
        self.totals.setdefault(name, _Total(var_name)).add(mean, var)
        return F.batch_norm(value, None, None, weight, bias, training=True, eps=call["eps"])


def _with_statistics(network: Network, found: Mapping[str, Statistics]) -> Network:
    tensors = dict(network.tensors)
    for name, stats in found.items():
        tensors[name] = stats.mean.to(tensors[name].dtype)
        tensors[stats.var_name] = stats.var.to(tensors[stats.var_name].dtype)
    return network.with_tensors(tensors)


def _outputs(network: Network, batches: Sequence[Inputs], device: torch.device) -> list[Tensor]:
    """Every output of every batch."""
    module = network.module().to(device)
    with torch.no_grad():
        return [output.double() for inputs in batches for output in module(*(value.to(device) for value in inputs))]
