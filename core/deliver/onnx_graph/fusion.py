"""Batch-norms that follow a convolution, folded into its weights: w' = w·γ/σ, b' = (b − μ)·γ/σ + β."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from core.analysis.schema import bind, operator_name
from core.network import Network

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


@dataclass(frozen=True)
class Fused:
    """What a convolution computes with once the batch-norm behind it is in its weights."""

    weight: Tensor
    bias: Tensor
    bias_name: Node


@dataclass(frozen=True)
class Fusions:
    """into: the convolutions that take one up. absorbed: the batch-norms that are no call of their own any more."""

    into: Mapping[Node, Fused]
    absorbed: frozenset[Node]


def fusions(network: Network) -> Fusions:
    """Every batch-norm by running statistics that is the only reader of a convolution with stored weights."""
    into, absorbed = {}, set()
    for node in network.graph.nodes:
        if node.op != "call_function" or operator_name(node.target) != "batch_norm":
            continue
        norm = bind(node)
        before = norm["input"]
        if len(before.users) != 1 or before.op != "call_function" or operator_name(before.target) not in _CONVOLUTIONS:
            continue
        convolution = bind(before)
        stored = [convolution["weight"], convolution["bias"], *(norm[name] for name in _VECTORS)]
        if norm["training"] or norm["running_mean"] is None or not all(map(_is_stored, stored)):
            continue
        into[before] = _fused(network, convolution, norm)
        absorbed.add(node)
    return Fusions(into, frozenset(absorbed))


_VECTORS = ("weight", "bias", "running_mean", "running_var")


def _is_stored(argument: Any) -> bool:
    return argument is None or (isinstance(argument, Node) and argument.op == "get_attr")


def _fused(network: Network, convolution: Mapping[str, Any], norm: Mapping[str, Any]) -> Fused:
    def stored(argument: Node | None, default: float) -> Tensor:
        if argument is None:
            return torch.tensor(default, dtype=torch.float64)
        return network.tensors[argument.target].detach().double()

    weight = stored(convolution["weight"], 1.0)
    scale = stored(norm["weight"], 1.0) / (stored(norm["running_var"], 1.0) + norm["eps"]).sqrt()
    shift = stored(norm["bias"], 0.0)
    bias = (stored(convolution["bias"], 0.0) - stored(norm["running_mean"], 0.0)) * scale + shift
    dtype = network.tensors[convolution["weight"].target].dtype
    name = next(argument for argument in (convolution["bias"], norm["bias"], norm["running_mean"]) if argument)
    return Fused((weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(dtype), bias.to(dtype), name)
