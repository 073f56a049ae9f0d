"""A copy of a network in which every layer responds: what the masked reference is repeated on where nothing responded.

Random signs and sizes wherever a tensor is constant or tiny, then one pass in which every layer is fitted to what it
reads (after Mishkin & Matas, "All you need is a good init", 2016): batch norms take the statistics of their input, and
layers with a weight of their own are scaled so that images differ by one unit and shifted so that they are centred.
Otherwise the difference between images drowns in the biases of a deep network: by 10⁻⁶ after thirty layers.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from core.analysis.schema import bind, operator_name
from core.analysis.trace import Trace, storage_key
from core.network import Network
from core.surgery.masked_run import MaskedRun, Run

_OUTPUT_AXIS = {"linear": -1, **{f"conv{rank}d": 1 for rank in (1, 2, 3)}}
# Below this share of a result, a difference between images is mostly rounding: enlarging it would show noise.
_NOISE = 1e-9
# Inputs and fitted layers are of the order of one: a result this small is what rounding left of a sum that cancels.
_CANCELLED = 1e-13


def responsive_copy(network: Network, seed: int, inputs: tuple[Tensor, ...], trace: Trace, kept: np.ndarray) -> Network:
    """`network` in float64 with other values, fitted to what the masked reference computes from `inputs` (a batch)."""
    other = _randomised(network, seed)
    return _fitted(other, inputs, MaskedRun(other.graph, other.tensors, inputs, trace, kept))


def _randomised(network: Network, seed: int) -> Network:
    """Whatever is constant, or tiny beside the rest of its tensor, is drawn anew, and signs are flipped at random.

    What is nowhere negative stays so (variances), and buffers of several dimensions (fixed filters) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, drawn = {}, {}
    for name, tensor in network.tensors.items():
        flat = tensor.numel() == max(tensor.shape, default=1)
        if not tensor.is_floating_point() or tensor.numel() == 0 or not (flat or name in network.parameter_names):
            tensors[name] = tensor
            continue
        key = storage_key(tensor)
        if key not in drawn:
            drawn[key] = _redrawn(tensor, flat, generator)
        tensors[name] = drawn[key]
    return network.with_tensors(tensors)


def _redrawn(tensor: Tensor, flat: bool, generator: torch.Generator) -> Tensor:
    size = tensor.double().abs()
    usual = 1.0 if flat else math.sqrt(1 / math.prod(tensor.shape[1:]))
    typical = float(size.square().mean().sqrt())
    if typical < 1e-3 * usual or bool((size == size.flatten()[0]).all()):
        size, typical = torch.zeros_like(size), usual
    disturbance = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    fresh = torch.where(size < 1e-2 * typical, torch.full_like(size, typical), size) * disturbance
    if not flat or not bool((tensor >= 0).all()):
        fresh *= torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return fresh


def _fitted(network: Network, inputs: tuple[Tensor, ...], run: MaskedRun) -> Network:
    names = Counter(storage_key(tensor) for tensor in network.tensors.values() if tensor.numel())
    own = {
        node
        for node in network.graph.nodes
        if node.op == "get_attr" and len(node.users) == 1 and names[storage_key(network.tensors[node.target])] == 1
    }
    readers = Counter(node.target for node in network.graph.nodes if node.op == "get_attr")
    own = {node for node in own if readers[node.target] == 1}
    for node in network.graph.nodes:
        name = operator_name(node.target) if node.op == "call_function" else ""
        if name == "batch_norm":
            _fit_statistics(run, node, own)
        elif name in _OUTPUT_AXIS:
            _fit_layer(run, node, own, _OUTPUT_AXIS[name], len(inputs[0]))
        run.step(node)
        run.release(node)
    return replace(network, tensors=MappingProxyType(dict(run.tensors)))


def _fit_statistics(run: Run, node: Node, own: set[Node]) -> None:
    arguments = bind(node)
    mean, variance = arguments["running_mean"], arguments["running_var"]
    if arguments["training"] or mean not in own or variance not in own:
        return
    x = run.value(arguments["input"])
    axes = [axis for axis in range(x.ndim) if axis != 1]
    found = x.var(axes, correction=0)
    usual = float(found.mean())
    if math.isfinite(usual) and usual > 0:
        _set(run, mean, x.mean(axes))
        _set(run, variance, found.clamp(min=0.01 * usual))


def _fit_layer(run: Run, node: Node, own: set[Node], axis: int, images: int) -> None:
    arguments = bind(node)
    weight, bias = arguments["weight"], arguments["bias"]
    if weight not in own or (bias is not None and bias not in own):
        return
    result = run.call(node)
    channel_means = result.mean([other for other in range(result.ndim) if other != axis % result.ndim])
    if result.shape[0] % images == 0:
        by_image = result.reshape(images, -1)
        spread = float((by_image - by_image.mean(0)).square().mean().sqrt())
    else:
        spread = float(result.std(correction=0))
    size = float(result.square().mean().sqrt())
    if not math.isfinite(spread) or not spread > _NOISE * size or size < _CANCELLED:
        return
    _set(run, weight, run.value(weight) / spread)
    if bias is not None:
        old = run.value(bias)
        typical = float(old.abs().mean()) or 1.0
        _set(run, bias, (old - channel_means) / spread + 0.5 * old / typical)


def _set(run: Run, node: Node, tensor: Tensor) -> None:
    run.tensors[node.target] = tensor
    run.values[node] = tensor
