"""What operator handlers see and write to while the network is interpreted on labels.

A handler gets a `Call` (one node with its arguments by name) and a `Recorder`. It returns the labelled result and
pushes what it found: ties, freezes, cost rows, contracted reads and one rewrite closure per literal. Everything after
the interpretation is generic and knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.fx import Graph, Node

from core.analysis.label_sets import LabelSets
from core.analysis.schema import set_argument
from core.analysis.values import Labels, Value
from core.network import TensorMeta


class UnlabelledOperator(Exception):
    """Raised by a handler for a use of its operator that it does not cover: everything it touches is frozen."""


@dataclass(frozen=True, eq=False)
class Call:
    """One operator call: argument values by schema name, and the same arguments as graph nodes (`raw`)."""

    node: Node
    operator: str
    arguments: dict[str, Any]
    raw: dict[str, Any]
    layer: str

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (single) result at batch 1."""
        return self.node.meta["value"].shape

    @property
    def tensors(self) -> list[Value]:
        """Every tensor argument in order, those inside lists too."""
        return tensor_arguments(self.arguments.values())


@dataclass(frozen=True, eq=False)
class Freeze:
    """Labels that must stay, and why. `quiet` freezes are structure (kernel positions, image channels), not news."""

    labels: Labels
    layer: str
    operator: str
    reason: str
    quiet: bool


@dataclass(frozen=True, eq=False)
class MacRow:
    """constant × Π kept lengths of `vectors` multiply-accumulates of one node."""

    node: str
    constant: int
    vectors: tuple[Labels, ...]


@dataclass(frozen=True, eq=False)
class Read:
    """`labels` lie along `axis` of the call's argument `argument` (its item `index`, where that is a list)."""

    argument: str
    axis: int
    labels: Labels
    index: int | None = None


@dataclass(frozen=True, eq=False)
class Subset:
    """The call runs over the surviving positions only: what it reads is cut to them, and its result fills their places.

    reads: every axis that is cut. results: labels by axis of the result (empty where the axis is reduced away).
    reason: what the call does with the axis.
    """

    reads: tuple[Read, ...]
    results: Mapping[int, Labels]
    layer: str
    operator: str
    reason: str


@dataclass(frozen=True, eq=False)
class Split:
    """One labelled axis became several: how many, and the labels along the one that stays free."""

    options: int
    labels: Labels


class Edit:
    """What a rewrite closure sees: its node in the new graph, and which labels are kept."""

    def __init__(self, node: Node, graph: Graph, kept: np.ndarray) -> None:
        self.node = node
        self.graph = graph
        self._kept = kept

    def count(self, labels: Labels) -> int:
        """How many positions of a labelled axis survive."""
        return int(self._kept[labels].sum())

    def set(self, name: str, value: Any) -> None:
        set_argument(self.node, name, value)


Rewrite = Callable[[Edit], None]


class Recorder:
    """Collects labels, ties, freezes, cost rows, reads, rewrites and pieces. One per interpretation.

    survivors: statistics over channels are taken over those that survive instead of freezing them. splits: nodes that
    split one labelled axis into several. choices: which of these stays free there, 0 for the longest.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        survivors: bool = False,
        choices: Mapping[str, int] | None = None,
    ) -> None:
        self.tensors = tensors or {}
        self.survivors = survivors
        self.splits: dict[str, Split] = {}
        self._choices = choices or {}
        self.label_count = 0
        self.ties: list[tuple[Labels, Labels]] = []
        self.freezes: list[Freeze] = []
        self.mac_rows: list[MacRow] = []
        self.reads: dict[str, tuple[Read, ...]] = {}
        self.subsets: dict[str, Subset] = {}
        self.rewrites: list[tuple[str, Rewrite]] = []
        self.pieces: list[tuple[str, Labels]] = []
        self.positions: dict[str, Labels] = {}
        self.call: Call | None = None
        self._sets = LabelSets()
        self._joined = 0

    def fresh(self, count: int) -> Labels:
        """`count` labels that were never used."""
        labels = np.arange(self.label_count, self.label_count + count, dtype=np.int64)
        self.label_count += count
        return labels

    def tie(self, first: Labels | None, second: Labels | None, reason: str) -> None:
        """Position i of both lives or dies together. Where only one side can be sliced, it is frozen."""
        self.join([first, second], reason)

    def join(self, vectors: Sequence[Labels | None], reason: str) -> Labels | None:
        """Tie all given vectors of one full-size axis; an unlabelled one freezes the rest. Returns one of them."""
        labelled = [vector for vector in vectors if vector is not None]
        if not labelled:
            return None
        for other in labelled[1:]:
            if other is not labelled[0]:
                self.ties.append((labelled[0], other))
        if len(labelled) < len(vectors):
            self.freeze(labelled[0], reason)
        return labelled[0]

    def free_axis(self, labels: np.ndarray, axes: Sequence[int]) -> int:
        """Which of the axes, along all of which `labels` vary, goes on being sliced."""
        order = sorted(axes, key=lambda axis: -labels.shape[axis])
        if len(order) == 1 or self.call is None:
            return order[0]
        name = self.call.node.name
        chosen = order[min(self._choices.get(name, 0), len(order) - 1)]
        self.splits[name] = Split(len(order), np.moveaxis(labels, chosen, 0).reshape(labels.shape[chosen], -1)[:, 0])
        return chosen

    def tie_rows(self, rectangle: np.ndarray) -> Labels:
        """Tie all rows of a 2-d array of labels to its first row, which is returned."""
        first = rectangle[0]
        if len(rectangle) > 1:
            self.ties.append((np.tile(first, len(rectangle) - 1), rectangle[1:].ravel()))
        return first

    def canonical(self, labels: np.ndarray) -> np.ndarray:
        """Labels with every set that is tied so far replaced by its smallest member."""
        self._sets.join(self.ties[self._joined :])
        self._joined = len(self.ties)
        return self._sets.roots(labels)

    def contract(self, inputs: Labels | None, weight: Labels | None) -> None:
        """Tie the channels that a layer reads to the input axis of its weight."""
        if inputs is None:
            # Image channels: nobody expects them to be prunable.
            self.freeze(weight, "reads channels that cannot be sliced", quiet=True)
        else:
            self.tie(inputs, weight, "read by a weight that cannot be sliced")

    def freeze(self, labels: Labels | None, reason: str, *, quiet: bool = False) -> None:
        if labels is not None and labels.size:
            call = self.call
            layer, operator = (call.layer, call.operator) if call is not None else ("", "")
            self.freezes.append(Freeze(labels, layer, operator, reason, quiet))

    def frozen(self, count: int) -> Labels:
        """Fresh labels of positions that exist but cannot be removed (an unlabelled part of a labelled axis)."""
        labels = self.fresh(count)
        self.freeze(labels, "part of an axis that cannot be sliced", quiet=True)
        return labels

    def freeze_axes(self, value: Value, axes: Sequence[int], reason: str, *, quiet: bool = False) -> None:
        for axis in axes:
            self.freeze(value.vector(axis), reason, quiet=quiet)

    def macs(self, constant: int, vectors: Sequence[Labels | None]) -> None:
        present = tuple(vector for vector in vectors if vector is not None)
        self.mac_rows.append(MacRow(self.call.node.name, constant, present))

    def read(self, argument: str, axis: int, labels: Labels | None, index: int | None = None) -> None:
        """The call sums over the positions of `labels`: the masked reference zeroes the removed ones there."""
        if labels is not None:
            name = self.call.node.name
            self.reads[name] = (*self.reads.get(name, ()), Read(argument, axis, labels, index))

    def run_over(self, reads: Sequence[Read], reason: str, results: Mapping[int, Labels] | None = None) -> None:
        """The call depends on all positions of the axes that `reads` name: they are frozen.

        With `survivors` it runs over those that are left, as the masked reference does, and is reported. `results`:
        the axes along which its result still has one position for each.
        """
        if not self.survivors:
            for one in reads:
                self.freeze(one.labels, reason)
            return
        if reads:
            for one in reads:
                self.piece(one.labels, "[statistics]")
            call = self.call
            self.subsets[call.node.name] = Subset(tuple(reads), dict(results or {}), call.layer, call.operator, reason)

    def rewrite(self, closure: Rewrite) -> None:
        self.rewrites.append((self.call.node.name, closure))

    def piece(self, labels: Labels | None, suffix: str) -> None:
        """A cut-out part of an axis that must not become empty; a part of one position cannot shrink at all."""
        if labels is None:
            return
        if len(labels) == 1:
            self.freeze(labels, "a piece of one channel", quiet=True)
        self.pieces.append((f"{self.call.node.name}{suffix}", labels))

    def point(self, name: str, labels: Labels) -> None:
        """The values of the stored tensor `name` are positions along an axis with these labels: they are renumbered."""
        self.positions[name] = labels

    def checkpoint(self) -> tuple[int, ...]:
        return len(self.ties), len(self.freezes), len(self.rewrites), len(self.pieces)

    def roll_back(self, checkpoint: tuple[int, ...]) -> None:
        """Forget what an abandoned call pushed. Its cost rows stay: they are facts about the call, whoever freezes it."""
        ties, freezes, rewrites, pieces = checkpoint
        if self._joined > ties:
            self._sets, self._joined = LabelSets(), 0
        del self.ties[ties:], self.freezes[freezes:], self.rewrites[rewrites:], self.pieces[pieces:]
        self.reads.pop(self.call.node.name, None)
        self.subsets.pop(self.call.node.name, None)


def joined_ties(ties: Sequence[tuple[Labels, Labels]]) -> np.ndarray:
    """All tied pairs as one int64 array [2, n]."""
    if not ties:
        return np.zeros((2, 0), dtype=np.int64)
    return np.stack([np.concatenate([pair[side] for pair in ties]) for side in (0, 1)])


def components(label_count: int, ties: np.ndarray) -> tuple[int, np.ndarray]:
    """Number of sets of tied labels, and each label's set, numbered by smallest member."""
    graph = coo_array((np.ones(ties.shape[1], dtype=np.int8), (ties[0], ties[1])), shape=(label_count, label_count))
    count, of = connected_components(graph, directed=False)
    return int(count), of.astype(np.int64)


Handler = Callable[[Recorder, Call], "Value | tuple[Value, ...]"]


def tensor_arguments(arguments: Any) -> list[Value]:
    found: list[Value] = []
    for argument in arguments:
        if isinstance(argument, Value):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found.extend(tensor_arguments(argument))
    return found


def unlabelled(meta: Any) -> Any:
    """The result of a call as values without labels (tuples stay tuples, symbolic sizes stay ints)."""
    if isinstance(meta, TensorMeta):
        return Value(meta.shape)
    if isinstance(meta, (tuple, list)):
        return tuple(unlabelled(item) for item in meta)
    return meta
