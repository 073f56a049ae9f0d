"""Which convolutions can share kernels: more than one tap, no groups, a weight of their own."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from core.analysis.schema import bind, operator_name
from core.analysis.trace import storage_key
from core.network import Network

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


@dataclass(frozen=True)
class Site:
    """One convolution. node: its name in the graph; positions: output positions of one image; span: the input channels
    that one kernel lies over, which are 1 or all of them (`core.penni.decomposition`)."""

    node: str
    weight: str
    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    positions: int
    span: int = 1

    @property
    def taps(self) -> int:
        """Of one kernel."""
        return self.span * math.prod(self.kernel)

    @property
    def pieces(self) -> int:
        """How many kernels lie side by side over the inputs."""
        return self.inputs // self.span

    @property
    def path(self) -> str:
        """What its own tensors are called after: `layer1.0.conv1` for `layer1.0.conv1.weight`."""
        owner, _, leaf = self.weight.rpartition(".")
        return owner if owner and leaf == "weight" else self.weight


def readers_of(network: Network) -> Counter[Any]:
    """How many calls read each stored tensor, by its storage."""
    return Counter(
        storage_key(network.tensors[argument.target])
        for node in network.graph.nodes
        for argument in node.all_input_nodes
        if argument.op == "get_attr"
    )


def sites(network: Network, *, pointwise: bool = False) -> tuple[Site, ...]:
    """In execution order. Grouped, depthwise and transposed convolutions have no kernels to share.

    pointwise: 1×1 convolutions, too, whose weights are coefficients of the one kernel that there is.
    """
    readers = readers_of(network)
    found = []
    for node in network.graph.nodes:
        site = _site(node, network, pointwise)
        if site is not None and readers[storage_key(network.tensors[site.weight])] == 1:
            found.append(site)
    return tuple(found)


def _site(node: Node, network: Network, pointwise: bool) -> Site | None:
    if node.op != "call_function" or operator_name(node.target) not in _CONVOLUTIONS:
        return None
    call = bind(node)
    weight = call["weight"]
    if call["groups"] != 1 or weight.op != "get_attr" or weight.target not in network.parameter_names:
        return None
    shape = network.tensors[weight.target].shape
    result = node.meta["value"].shape
    if (math.prod(shape[2:]) == 1 and not pointwise) or len(result) != len(shape) or call["input"] is weight:
        return None
    return Site(node.name, weight.target, shape[0], shape[1], tuple(shape[2:]), math.prod(result[2:]))
