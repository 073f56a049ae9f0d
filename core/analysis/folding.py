"""Folding: weights that are computed by statistics over themselves become plain weights.

Weight standardisation (Qiao et al., arXiv 1903.10520; NF-nets, Brock et al., arXiv 2102.06171), weight normalisation and
spectral normalisation divide a weight by a statistic of that same weight. The statistic needs every input channel, so no
channel could ever be removed. At inference the computed weight is a constant: it is evaluated once and stored.

    w = weight - weight.mean((1, 2, 3));  conv2d(x, w * gain / w.std(…))   →   conv2d(x, weight)

What is trained afterwards are the plain weights, and tensors that only the statistic read (`gain`) are gone: both change
the network's form, not its function, and belong in the report.

Computations on parameters without statistics stay, because labels pass through them: `gamma.reshape`, concatenated
biases, relative-position tables, and Swin v2's position-bias network too, whose layers work on constants only. Folding
that one would store a table of heads × window⁴ elements in place of two small layers; it counts as the operator counter
counts it, once per run and not once per image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from core.analysis.schema import bind, operator_name
from core.analysis.trace import layer_name
from core.network import Network, TensorMeta

# Operators whose result at one position depends on other positions of a weight, other than products of matrices.
_NAMES = """
mean sum prod amax amin var std var_mean std_mean norm linalg_norm linalg_vector_norm linalg_matrix_norm logsumexp
layer_norm native_layer_norm group_norm native_group_norm rms_norm instance_norm softmax log_softmax
_weight_norm _weight_norm_interface norm_except_dim mv dot vdot
"""
_STATISTICS = frozenset(_NAMES.split())
_BATCH_NORMS = frozenset({"batch_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"})


@dataclass(frozen=True)
class Folded:
    """The network with plain weights, and the layers that read a folded one, in graph order."""

    network: Network
    layers: tuple[str, ...]


def fold_statistics(network: Network) -> Folded:
    """Evaluate every parameter-only subgraph that contains statistics, in float64, and store what it yields.

    A result takes the name of the weight that it is computed from where nothing else reads that weight, and a new name
    beside it (`weight_folded`) otherwise; equal results of one weight share a tensor. Tensors that only folded
    subgraphs read are dropped. The network itself is returned where there is nothing to fold.
    """
    constant = _constants(network.graph)
    normalised = _descendants(constant, [node for node in constant if _is_statistic(node)])
    results = [node for node in normalised if any(user not in constant for user in node.users)]
    results = [node for node in results if isinstance(node.meta["value"], TensorMeta)]
    # What a weight is at the end is not in its node where something writes into it.
    written = _ancestors([node for node in constant if _writes(node)])
    folds = [fold for fold in map(_Fold.of, results) if written.isdisjoint(fold.steps)]
    if not folds:
        return Folded(network, ())
    return _stored(network, folds)


@dataclass(frozen=True, eq=False)
class _Fold:
    """A computed weight: the node that yields it and everything that it is computed from, in graph order."""

    result: Node
    steps: tuple[Node, ...]

    @staticmethod
    def of(result: Node) -> _Fold:
        steps = _ancestors([result])
        return _Fold(result, tuple(node for node in result.graph.nodes if node in steps))

    @property
    def reads(self) -> list[Node]:
        return [node for node in self.steps if node.op == "get_attr"]

    def weight(self, network: Network) -> str:
        """The tensor that the result stands for: of the result's shape if there is one, else the largest."""
        shape = self.result.meta["value"].shape
        names = [node.target for node in self.reads]
        return max(names, key=lambda name: (network.tensors[name].shape == shape, network.tensors[name].numel()))

    def evaluate(self, network: Network) -> Tensor:
        values: dict[Node, Any] = {}
        with torch.no_grad():
            for node in self.steps:
                if node.op == "get_attr":
                    tensor = network.tensors[node.target]
                    values[node] = tensor.double() if tensor.is_floating_point() else tensor
                else:
                    arguments = map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = node.target(*arguments[0], **arguments[1])
        return values[self.result].to(network.tensors[self.weight(network)].dtype).contiguous()


def _stored(network: Network, folds: Sequence[_Fold]) -> Folded:
    graph = Graph()
    copies: dict[Node, Node] = {}
    by_result = {fold.result: fold for fold in folds}
    tensors = dict(network.tensors)
    parameters = set(network.parameter_names)
    gone = _read_only_by(folds)
    stored: dict[str, list[str]] = {}
    layers: dict[str, None] = {}
    for node in network.graph.nodes:
        if node in gone:
            continue
        if node not in by_result:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta = dict(node.meta)
            continue
        fold = by_result[node]
        weight, value = fold.weight(network), fold.evaluate(network)
        same = [name for name in stored.get(weight, ()) if torch.equal(tensors[name], value)]
        name = same[0] if same else _name(weight, fold, gone, tensors, stored)
        stored.setdefault(weight, []).append(name)
        tensors[name] = value
        if any(read.target in network.parameter_names for read in fold.reads):
            parameters.add(name)
        copies[node] = graph.get_attr(name)
        copies[node].meta = {"path": node.meta.get("path", ""), "value": TensorMeta(tuple(value.shape), value.dtype)}
        layers.update(dict.fromkeys(layer_name(user) for user in node.users if user not in gone))
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    dropped = {one.target for fold in folds for one in fold.reads} - read
    graph.lint()
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    result = replace(
        network, graph=graph, tensors=MappingProxyType(kept), parameter_names=frozenset(parameters - dropped)
    )
    return Folded(result, tuple(layers))


def _name(weight: str, fold: _Fold, gone: set[Node], tensors: dict[str, Tensor], stored: dict[str, list[str]]) -> str:
    """The weight's own name where only folded subgraphs read the weight and no other result has taken it."""
    readers = [node for node in fold.result.graph.nodes if node.op == "get_attr" and node.target == weight]
    if weight not in stored and all(node in gone for node in readers):
        return weight
    name = f"{weight}_folded"
    while name in tensors:
        name += "_"
    return name


def _read_only_by(folds: Sequence[_Fold]) -> set[Node]:
    """Steps that nothing but folded results is computed from (the results themselves are replaced, not dropped)."""
    results = {fold.result for fold in folds}
    steps = {node for fold in folds for node in fold.steps} - results
    gone: set[Node] = set()
    for node in reversed(folds[0].result.graph.nodes):
        if node in steps and all(user in gone or user in results for user in node.users):
            gone.add(node)
    return gone


def _constants(graph: Graph) -> dict[Node, None]:
    """Every node that is computed from parameters and buffers only."""
    found: dict[Node, None] = {}
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and node.all_input_nodes and all(one in found for one in node.all_input_nodes)
        ):
            found[node] = None
    return found


def _ancestors(nodes: Sequence[Node]) -> set[Node]:
    """`nodes` and everything that they are computed from."""
    found: set[Node] = set()
    waiting = [*nodes]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _descendants(among: Iterable[Node], sources: Sequence[Node]) -> list[Node]:
    found = dict.fromkeys(sources)
    for node in among:
        if any(one in found for one in node.all_input_nodes):
            found.setdefault(node)
    return list(found)


def _is_statistic(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    name = operator_name(node.target)
    if name in _BATCH_NORMS:
        return bool(bind(node).get("training"))
    return name in _STATISTICS


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
