"""Channels that say the same for every image: what they say, and who may take it over into its bias.

A channel of a convolution without coefficients is its bias everywhere; behind batch-norm and an activation it is ReLU(β
− γμ/σ). That it does not depend on the image follows from the graph alone: a channel varies where some node brings it
in from something that varies, and a convolution brings in nothing where its row of weights is zero. What it says is
then read off a run. Where that is zero nobody misses it. Another number goes into the bias of its reader (or into the
running mean of the batch-norm behind that), exactly where the reader has no padding: zeros at the border say something
else than the number does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from core.analysis import ChannelAnalysis
from core.analysis.context import Read, tensor_arguments
from core.analysis.schema import bind, operator_name
from core.analysis.trace import storage_key
from core.analysis.values import Value
from core.network import Network
from core.penni.sites import readers_of
from core.surgery.masked_run import Run

_BATCH = 2
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_CONTRACTIONS = _CONVOLUTIONS | {"linear"}


@dataclass(frozen=True, eq=False)
class Reader:
    """One call that sums over channels with a stored weight. components: of the positions along the read axis."""

    node: Node
    weight: str
    axis: int
    components: np.ndarray

    @property
    def is_convolution(self) -> bool:
        return operator_name(self.node.target) in _CONVOLUTIONS

    @property
    def padded(self) -> bool:
        """Whether it may see zeros beside its input."""
        padding = bind(self.node).get("padding", 0)
        if isinstance(padding, str):
            return padding != "valid"
        return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)

    def used(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        """bool per position: whether any weight there is not zero."""
        return (tensors[self.weight] != 0).movedim(self.axis, 0).flatten(1).any(dim=1).numpy()


@dataclass(frozen=True, eq=False)
class Readers:
    """Everything that sums over channels. others: components that are read by calls without a stored weight."""

    stored: tuple[Reader, ...]
    others: np.ndarray

    @staticmethod
    def of(network: Network, analysis: ChannelAnalysis) -> Readers:
        stored, others = [], np.zeros(analysis.components, dtype=bool)
        for node in network.graph.nodes:
            for read in analysis.trace.reads.get(node.name, ()):
                components = analysis.component_of[read.labels]
                weight = _stored(node, read)
                if weight is None:
                    others[components] = True
                else:
                    stored.append(Reader(node, weight, read.axis, components))
        return Readers(tuple(stored), others)

    def unread(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        """bool per component: every weight that would read it is zero."""
        found = ~self.others
        for reader in self.stored:
            found[reader.components[reader.used(tensors)]] = False
        return found


def _stored(node: Node, read: Read) -> str | None:
    argument = bind(node)[read.argument] if read.index is None else bind(node)[read.argument][read.index]
    return argument.target if isinstance(argument, Node) and argument.op == "get_attr" else None


def constant_components(network: Network, analysis: ChannelAnalysis) -> np.ndarray:
    """bool per component: no image changes what it says. By the graph, never by trying images."""
    varies = np.zeros(analysis.components, dtype=bool)
    values = analysis.trace.values
    depends: set[Node] = set()
    for node in network.graph.nodes:
        # A size is a number of the graph, not of the image.
        inputs = [one for one in node.all_input_nodes if one in depends and not isinstance(values[one.name], int)]
        if node.op == "placeholder" or inputs:
            depends.add(node)
        present = _components(values[node.name], analysis)
        if node not in depends or not len(present):
            continue
        carried = [_components(values[one.name], analysis) for one in inputs]
        if not carried or node.name in analysis.trace.reads:
            # What a sum over channels makes is new, whatever it is coupled with.
            known = np.zeros(0, dtype=np.int64)
        elif operator_name(node.target) in ("cat", "concat"):
            known = np.concatenate(carried)
        else:
            known = carried[0]
            for other in carried[1:]:
                known = np.intersect1d(known, other)
        brought_in = np.setdiff1d(present, known)
        varies[np.setdiff1d(brought_in, _silent(node, network, analysis))] = True
    return ~varies


def _components(value: object, analysis: ChannelAnalysis) -> np.ndarray:
    vectors = [vector for one in tensor_arguments([value]) for vector in one.labels.values()]
    return np.unique(analysis.component_of[np.concatenate(vectors)]) if vectors else np.zeros(0, dtype=np.int64)


def _silent(node: Node, network: Network, analysis: ChannelAnalysis) -> np.ndarray:
    """Components that a call brings in without making them depend on its input."""
    nothing = np.zeros(0, dtype=np.int64)
    name = operator_name(node.target)
    if name in ("constant_pad_nd", "pad"):
        call = bind(node)
        fills = call.get("mode", "constant") == "constant"
        return _components(analysis.trace.values[node.name], analysis) if fills else nothing
    if name not in _CONTRACTIONS:
        return nothing
    call = bind(node)
    weight = call["weight"]
    if weight.op != "get_attr" or call.get("groups", 1) != 1:
        return nothing
    value = analysis.trace.values[weight.name]
    if not isinstance(value, Value) or 0 not in value.labels:
        return nothing
    live = (network.tensors[weight.target] != 0).flatten(1).any(dim=1).numpy()
    components = analysis.component_of[value.labels[0]]
    return np.setdiff1d(components, components[live])


@dataclass(frozen=True, eq=False)
class Constants:
    """What constant channels say where they are read.

    values: by reader, float64 per position of the read axis; NaN where the channel is not the same number everywhere.
    """

    values: Mapping[Reader, np.ndarray]

    @staticmethod
    def of(network: Network, readers: Readers, constant: np.ndarray, seed: int = 0) -> Constants:
        wanted = {reader.node: reader for reader in readers.stored if constant[reader.components].any()}
        run = Run(network.graph, network.tensors, network.random_inputs(_BATCH, seed, torch.float64))
        found: dict[Reader, np.ndarray] = {}
        with torch.no_grad():
            for node in network.graph.nodes:
                reader = wanted.get(node)
                if reader is not None and operator_name(node.target) in _CONTRACTIONS:
                    said = run.value(bind(node)["input"])
                    axis = 1 if reader.is_convolution else said.ndim - 1
                    if said.shape[axis] == len(reader.components):
                        found[reader] = _same_everywhere(said.movedim(axis, 0).flatten(1))
                run.step(node)
                run.release(node)
        return Constants(found)


def _same_everywhere(rows: Tensor) -> np.ndarray:
    """The number that fills each row; NaN where there are several."""
    first = rows[:, 0]
    same = (rows - first[:, None]).abs().amax(dim=1) <= 1e-12 * first.abs()
    return torch.where(same, first, torch.nan).numpy()


class Takers:
    """Where the readers of one network can take a number over, and the taking."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._readers = readers_of(network)

    def place(self, reader: Reader) -> tuple[str, float] | None:
        """The tensor that a shift of the reader's output goes to, and its sign; None where there is no such tensor."""
        call = bind(reader.node)
        if not self._own(call["weight"]) or (reader.is_convolution and call["groups"] != 1):
            return None
        if call["bias"] is not None:
            return (call["bias"].target, 1.0) if self._own(call["bias"]) else None
        users = list(reader.node.users)
        if len(users) != 1 or operator_name(users[0].target) != "batch_norm":
            return None
        norm = bind(users[0])
        if norm["input"] is not reader.node or norm["training"] or not self._own(norm["running_mean"]):
            return None
        return norm["running_mean"].target, -1.0

    def _own(self, argument: Node | None) -> bool:
        """Stored, and read by this call alone."""
        return (
            argument is not None
            and argument.op == "get_attr"
            and self._readers[storage_key(self._network.tensors[argument.target])] == 1
        )


def shift(weight: Tensor, axis: int, positions: np.ndarray, numbers: np.ndarray) -> Tensor:
    """float64 [outputs]: what numbers at some positions of the read axis add to every output."""
    rows = weight.double().index_select(axis, torch.from_numpy(positions)).movedim(axis, 1)
    return rows.reshape(*rows.shape[:2], -1).sum(dim=2) @ torch.from_numpy(numbers)
