"""A convolution of the graph as shared kernels: a form for training, and forms that run anywhere.

Training rebuilds the weight from its factors in every step and convolves as before, so that gradients reach both:

    weight = reshape(matmul(reshape(index_select(cat(coefficients, 0), places), [O·C, d]), basis), [O, C, *kernel])

Delivery has ordinary operators only, with the same tensors under the same names:

    two stages   maps = conv(x[channels], basis[kernels], groups = columns)   one depthwise map per live column
                 out = conv(maps, coefficients, bias)                         1×1
    low rank     maps = conv(x, basis)                                        where kernels lie over all inputs
                 out = conv(maps, coefficients, bias)                         1×1
    dense        out = conv(x, weight, bias)                                  where that needs fewer multiply-accumulates

`layer1.0.conv1.weight` becomes `layer1.0.conv1.basis` [d, 1, *kernel] and `.coefficients` [O, columns, 1, …]; which
channel and which kernel make a column is in the integer buffers `.channels` and `.kernels`, channel-major. Channels are
gathered, one copy per column, because runtimes compute one map per channel several times faster than many; a layer that
reads every channel exactly once needs no gathering. A kernel over all inputs makes `.basis` [d, C, *kernel], and no such
buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from core.analysis.schema import bind
from core.network import Network, TensorMeta
from core.penni.costs import LayerCounts, two_stage_counts
from core.penni.decomposition import SharedKernels
from core.penni.sites import Site

aten = torch.ops.aten
_CONVOLUTIONS = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}


@dataclass(frozen=True, eq=False)
class SharedLayer:
    """A site with the columns that are left of it. channels, kernels: int64 [columns], channel-major."""

    site: Site
    channels: Tensor
    kernels: Tensor
    shared: int

    @staticmethod
    def of(site: Site, factors: SharedKernels) -> SharedLayer:
        """The live columns of `factors`, and the shared kernels that they need."""
        live = factors.live
        needed = live.any(dim=0)
        channels, kernels = live[:, needed].nonzero(as_tuple=True)
        return SharedLayer(replace(site, span=factors.span), channels, kernels, int(needed.sum()))

    @property
    def columns(self) -> int:
        return len(self.channels)

    @property
    def low_rank(self) -> bool:
        """Whether kernels lie over all inputs."""
        return self.site.pieces == 1

    @property
    def counts(self) -> LayerCounts:
        """Of its own form, which is not the plain convolution."""
        return two_stage_counts(self.site.outputs, self.columns, self.shared, self.site.taps, self.site.positions)

    def tensors(self, factors: SharedKernels) -> dict[str, Tensor]:
        """The trainable tensors of the layer."""
        path, rank = self.site.path, len(self.site.kernel)
        needed = factors.live.any(dim=0)
        coefficients = factors.coefficients[:, :, needed][:, self.channels, self.kernels]
        return {
            f"{path}.basis": factors.basis[needed].reshape(self.shared, self.site.span, *self.site.kernel).clone(),
            f"{path}.coefficients": coefficients.reshape(*coefficients.shape, *[1] * rank).clone(),
        }

    def factors(self, tensors: Mapping[str, Tensor]) -> SharedKernels:
        """The factors that such tensors hold."""
        basis = tensors[f"{self.site.path}.basis"].flatten(1)
        stored = tensors[f"{self.site.path}.coefficients"].flatten(1)
        coefficients = stored.new_zeros(self.site.outputs, self.site.pieces, self.shared)
        coefficients[:, self.channels, self.kernels] = stored
        return SharedKernels(coefficients, basis, self.site.kernel, self.site.span)


def trainable(network: Network, layers: Mapping[SharedLayer, SharedKernels]) -> Network:
    """`network` with each layer's weight computed from its factors. Single coefficients that are zero stay zero."""
    editor = _Editor(network)
    for layer, factors in layers.items():
        path = layer.site.path
        stored = layer.tensors(factors)
        editor.replace_parameter(layer.site.weight, stored)
        places = torch.full((layer.site.pieces, layer.shared), layer.columns)
        places[layer.channels, layer.kernels] = torch.arange(layer.columns)
        buffers = {f"{path}.places": places.flatten(), f"{path}.nothing": torch.zeros(layer.site.outputs, 1)}
        mask = (stored[f"{path}.coefficients"] != 0).flatten(1)
        if not bool(mask.all()):
            buffers[f"{path}.mask"] = mask.to(torch.float32)
        editor.add_buffers(buffers)
    return editor.rebuild(
        {layer.site.node: _Rebuilt(layer, f"{layer.site.path}.mask" in editor.tensors) for layer in layers}
    )


def executable(network: Network, trained: Network, layers: Mapping[SharedLayer, SharedKernels]) -> Network:
    """The two-stage or low-rank form of each layer, with the values of `trained` (`trainable` of the same layers).

    network: the original, whose graph is rewritten. A layer of `network` that is not named keeps the weight of
    `trained`.
    """
    editor = _Editor(valued(network, trained))
    rules = {}
    for layer in layers:
        path = layer.site.path
        editor.replace_parameter(
            layer.site.weight, {name: trained.tensors[name] for name in (f"{path}.basis", f"{path}.coefficients")}
        )
        if layer.low_rank:
            rules[layer.site.node] = _LowRank(layer)
            continue
        buffers = {f"{path}.kernels": layer.kernels.to(torch.int32)}
        gathers = layer.channels.tolist() != list(range(layer.site.inputs))
        if gathers:
            buffers[f"{path}.channels"] = layer.channels.to(torch.int32)
        editor.add_buffers(buffers)
        rules[layer.site.node] = _TwoStage(layer, gathers)
    return editor.rebuild(rules)


def fused(network: Network, trained: Network, layers: Mapping[SharedLayer, SharedKernels]) -> Network:
    """The graph of `network` with each layer's weight written out from the values of `trained`: what both forms
    equal."""
    return written_out(
        valued(network, trained), {layer.site.weight: layer.factors(trained.tensors) for layer in layers}
    )


def written_out(network: Network, factors: Mapping[str, SharedKernels]) -> Network:
    """`network` with the weights that factors make, by the name of the weight."""
    written = {weight: one.weight() for weight, one in factors.items()}
    return network.with_tensors({**network.tensors, **written})


def valued(network: Network, other: Network) -> Network:
    """`network` with the values of `other` where that has a tensor of the name."""
    return network.with_tensors({name: other.tensors.get(name, old) for name, old in network.tensors.items()})


class _Editor:
    """Collects other tensors for a network and copies its graph with some convolutions written anew."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.tensors = dict(network.tensors)
        self._parameters = set(network.parameter_names)

    def replace_parameter(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Put `tensors` in the place of a parameter, so that a file lists a layer's tensors side by side."""
        ordered: dict[str, Tensor] = {}
        for old, value in self.tensors.items():
            ordered.update(tensors if old == name else {old: value})
        self.tensors = ordered
        self._parameters = (self._parameters - {name}) | tensors.keys()

    def add_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors.update(tensors)

    def rebuild(self, rules: Mapping[str, Callable[[_Writer, Node], Node]]) -> Network:
        graph = Graph()
        copies: dict[Node, Node] = {}
        # Nodes are told by their names, so new ones must not take those of nodes that are still to be copied.
        prefix = "shared"
        while any(node.name.startswith(prefix) for node in self._network.graph.nodes):
            prefix += "_"
        for node in self._network.graph.nodes:
            if node.op == "get_attr" and node.target not in self.tensors:
                continue
            if node.name in rules:
                copies[node] = rules[node.name](_Writer(graph, self.tensors, node, copies, prefix), node)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.lint()
        return replace(
            self._network,
            graph=graph,
            tensors=MappingProxyType(self.tensors),
            parameter_names=frozenset(self._parameters),
        )


@dataclass(frozen=True)
class _Writer:
    """Writes the nodes of one layer. prefix: of their names, unless one takes the place of `node`."""

    graph: Graph
    tensors: Mapping[str, Tensor]
    node: Node
    copies: Mapping[Node, Node]
    prefix: str

    def tensor(self, name: str) -> Node:
        node = self.graph.create_node("get_attr", name, name=f"{self.prefix}_tensor")
        return self._told(node, self.tensors[name].shape, self.tensors[name].dtype)

    def call(self, target: Any, *args: Any, shape: tuple[int, ...], name: str | None = None) -> Node:
        node = self.graph.create_node("call_function", target, args, name=name or f"{self.prefix}_step")
        return self._told(node, shape, self.node.meta["value"].dtype)

    def convolution(
        self, inputs: Node, weight: Node, bias: Node | None, geometry: tuple[Any, ...], **about: Any
    ) -> Node:
        operator = _CONVOLUTIONS[len(weight.meta["value"].shape) - 2]
        target = operator.padding if any(isinstance(one, str) for one in geometry) else operator.default
        return self.call(target, inputs, weight, bias, *geometry, **about)

    def _told(self, node: Node, shape: tuple[int, ...], dtype: torch.dtype) -> Node:
        node.meta = {"path": self.node.meta.get("path", ""), "value": TensorMeta(tuple(shape), dtype)}
        return node


@dataclass(frozen=True)
class _Rebuilt:
    """The convolution of a weight that is computed from its factors."""

    layer: SharedLayer
    masked: bool

    def __call__(self, write: _Writer, node: Node) -> Node:
        site, layer, path = self.layer.site, self.layer, self.layer.site.path
        outputs, columns, shared, taps = site.outputs, layer.columns, layer.shared, site.taps
        coefficients = write.call(
            aten.reshape.default, write.tensor(f"{path}.coefficients"), [outputs, columns], shape=(outputs, columns)
        )
        if self.masked:
            mask = write.tensor(f"{path}.mask")
            coefficients = write.call(aten.mul.Tensor, coefficients, mask, shape=(outputs, columns))
        padded = write.call(
            aten.cat.default, [coefficients, write.tensor(f"{path}.nothing")], 1, shape=(outputs, columns + 1)
        )
        width = site.pieces * shared
        full = write.call(aten.index_select.default, padded, 1, write.tensor(f"{path}.places"), shape=(outputs, width))
        rows = outputs * site.pieces
        full = write.call(aten.reshape.default, full, [rows, shared], shape=(rows, shared))
        basis = write.call(aten.reshape.default, write.tensor(f"{path}.basis"), [shared, taps], shape=(shared, taps))
        kernels = write.call(aten.matmul.default, full, basis, shape=(rows, taps))
        shape = (outputs, site.inputs, *site.kernel)
        weight = write.call(aten.reshape.default, kernels, list(shape), shape=shape)
        call = bind(node)
        return write.convolution(
            write.copies[call["input"]],
            weight,
            _copied(call["bias"], write),
            (call["stride"], call["padding"], call["dilation"]),
            shape=node.meta["value"].shape,
            name=node.name,
        )


@dataclass(frozen=True)
class _TwoStage:
    """Depthwise maps of shared kernels, then a 1×1 convolution, which also adds the bias."""

    layer: SharedLayer
    gathers: bool

    def __call__(self, write: _Writer, node: Node) -> Node:
        site, layer, path = self.layer.site, self.layer, self.layer.site.path
        call = bind(node)
        inputs, shape = write.copies[call["input"]], node.meta["value"].shape
        if self.gathers:
            gathered = (1, layer.columns, *inputs.meta["value"].shape[2:])
            inputs = write.call(aten.index_select.default, inputs, 1, write.tensor(f"{path}.channels"), shape=gathered)
        weight = write.call(
            aten.index_select.default,
            write.tensor(f"{path}.basis"),
            0,
            write.tensor(f"{path}.kernels"),
            shape=(layer.columns, 1, *site.kernel),
        )
        maps = write.convolution(
            inputs,
            weight,
            None,
            (call["stride"], call["padding"], call["dilation"], layer.columns),
            shape=(1, layer.columns, *shape[2:]),
        )
        return write.convolution(
            maps, write.tensor(f"{path}.coefficients"), _copied(call["bias"], write), (), shape=shape, name=node.name
        )


@dataclass(frozen=True)
class _LowRank:
    """A convolution to as many channels as there are kernels, then a 1×1 convolution, which also adds the bias."""

    layer: SharedLayer

    def __call__(self, write: _Writer, node: Node) -> Node:
        path, call, shape = self.layer.site.path, bind(node), node.meta["value"].shape
        maps = write.convolution(
            write.copies[call["input"]],
            write.tensor(f"{path}.basis"),
            None,
            (call["stride"], call["padding"], call["dilation"]),
            shape=(1, self.layer.shared, *shape[2:]),
        )
        return write.convolution(
            maps, write.tensor(f"{path}.coefficients"), _copied(call["bias"], write), (), shape=shape, name=node.name
        )


def _copied(bias: Node | None, write: _Writer) -> Node | None:
    return None if bias is None else write.copies[bias]
