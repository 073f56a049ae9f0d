"""Run a network on channel names: the abstract interpretation behind analysis, costs, surgery and verification.

    trace = trace_network(network)
    trace.values["conv2d"].labels[1]       the labels of conv2d's output channels = its weight's axis-0 labels

Parameters and buffers are values too: each of their axes gets fresh labels when it is first read. One handler per
operator (`core.analysis.handlers`) says what happens to labels. An operator without a handler, and a handler that
raises, freeze every label that the call touches: never a guess, never a crash.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from core.analysis.context import (
    Call,
    Freeze,
    MacRow,
    Read,
    Recorder,
    Rewrite,
    Split,
    Subset,
    UnlabelledOperator,
    components,
    joined_ties,
    tensor_arguments,
    unlabelled,
)
from core.analysis.handlers import HANDLERS
from core.analysis.schema import bind, is_aten, operator_name
from core.analysis.values import Labels, Value
from core.network import Network, TensorMeta

# Longer axes (flat expert weights) are not channels; labelling them would only cost time.
_LONGEST_LABELLED_AXIS = 70_000


@dataclass(frozen=True, eq=False)
class Trace:
    """Everything that one interpretation found.

    values: per node, a Value, a tuple of them or an int. tensors: labels of every tensor that a node reads, by each of its names.
    ties: int64 [2, n] pairs of equal labels. reads: what each node contracts over. subsets: nodes that run over the
    surviving positions. positions: stored tensors whose values number the places of labels. faults: handlers that raised
    by mistake (sound, but a bug).
    """

    label_count: int
    ties: np.ndarray
    freezes: tuple[Freeze, ...]
    values: Mapping[str, Any]
    tensors: Mapping[str, Value]
    mac_rows: tuple[MacRow, ...]
    reads: Mapping[str, tuple[Read, ...]]
    subsets: Mapping[str, Subset]
    rewrites: tuple[tuple[str, Rewrite], ...]
    pieces: tuple[tuple[str, Labels], ...]
    positions: Mapping[str, Labels]
    faults: tuple[str, ...]


def trace_network(network: Network, *, survivors: bool = False) -> Trace:
    """Interpret `network` on labels; milliseconds, and no tensor is computed.

    survivors: let operators with statistics over channels run over those that are left. Where an axis is split and the
    part that stays free turns out to be frozen, the next longest is tried: heads instead of the channels inside them.
    """
    choices: dict[str, int] = {}
    best, splits = _interpreted(network, survivors, choices)
    latest = best
    for _ in range(max((split.options for split in splits.values()), default=1) - 1):
        frozen = _frozen_labels(latest)
        stuck = {
            node: choices.get(node, 0) + 1
            for node, split in splits.items()
            if choices.get(node, 0) + 1 < split.options and frozen[split.labels].all()
        }
        if not stuck:
            break
        choices |= stuck
        latest, splits = _interpreted(network, survivors, choices)
        best = max(best, latest, key=_free_positions)
    return best


def _interpreted(network: Network, survivors: bool, choices: Mapping[str, int]) -> tuple[Trace, dict[str, Split]]:
    """What was found, and the nodes that split a labelled axis."""
    interpreter = _LabelInterpreter(network, survivors, choices)
    for node in network.graph.nodes:
        interpreter.values[node.name] = interpreter.run_node(node)
    interpreter.adopt_aliases()
    recorder = interpreter.recorder
    trace = Trace(
        label_count=recorder.label_count,
        ties=joined_ties(recorder.ties),
        freezes=tuple(recorder.freezes),
        values=interpreter.values,
        tensors=interpreter.tensors,
        mac_rows=tuple(recorder.mac_rows),
        reads=recorder.reads,
        subsets=recorder.subsets,
        rewrites=tuple(recorder.rewrites),
        pieces=tuple(recorder.pieces),
        positions=recorder.positions,
        faults=tuple(interpreter.faults),
    )
    return trace, recorder.splits


def _frozen_labels(trace: Trace) -> np.ndarray:
    """bool per label: tied to one that must stay."""
    count, component_of = components(trace.label_count, trace.ties)
    frozen = np.zeros(count, dtype=bool)
    for freeze in trace.freezes:
        frozen[component_of[freeze.labels]] = True
    return frozen[component_of]


def _free_positions(trace: Trace) -> int:
    """How many slices of stored tensors can be removed."""
    frozen = _frozen_labels(trace)
    return sum(int((~frozen[labels]).sum()) for value in trace.tensors.values() for labels in value.labels.values())


def layer_name(node: Node) -> str:
    """The module that made the node; for a functional call, the owner of the first tensor that it reads."""
    if node.meta.get("path"):
        return node.meta["path"]
    for argument in node.all_input_nodes:
        if argument.op == "get_attr":
            return argument.target.rpartition(".")[0] or argument.target
    return node.name


def storage_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two names of the same tensor (tied weights)."""
    return tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


class _LabelInterpreter:
    def __init__(self, network: Network, survivors: bool, choices: Mapping[str, int]) -> None:
        self.network = network
        self.recorder = Recorder(network.tensors, survivors=survivors, choices=choices)
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, Value] = {}
        self.faults: list[str] = []
        self._by_storage: dict[tuple[Any, ...], Value] = {}

    def run_node(self, node: Node) -> Any:
        if node.op == "placeholder":
            return unlabelled(node.meta["value"])
        if node.op == "get_attr":
            return self._tensor(node.target)
        if node.op == "output":
            return self._output(node)
        return self._call(node)

    def _tensor(self, name: str) -> Value:
        if name not in self.tensors:
            tensor = self.network.tensors[name]
            key = storage_key(tensor)
            if key not in self._by_storage or tensor.numel() == 0:
                shape = tuple(tensor.shape)
                labels = {
                    axis: self.recorder.fresh(size)
                    for axis, size in enumerate(shape)
                    if 1 < size <= _LONGEST_LABELLED_AXIS
                }
                self._by_storage[key] = Value(shape, labels)
            self.tensors[name] = self._by_storage[key]
        return self.tensors[name]

    def adopt_aliases(self) -> None:
        """A second name of a tensor that some node reads has its labels, whether a node reads that name or not."""
        for name, tensor in self.network.tensors.items():
            key = storage_key(tensor)
            if tensor.numel() and key in self._by_storage:
                self.tensors[name] = self._by_storage[key]

    def _output(self, node: Node) -> None:
        for argument in node.args[0]:
            value = self.values[argument.name]
            self.recorder.call = Call(node, "output", {}, {}, layer_name(argument))
            for vector in value.labels.values():
                self.recorder.freeze(vector, "the width of a network output is part of its contract")

    def _call(self, node: Node) -> Any:
        name = operator_name(node.target)
        # In-place operators need nothing special: the labels of a view are the labels of its base.
        plain = name.removesuffix("_") if not name.startswith("_") else name
        known = is_aten(node.target) or node.target is operator.getitem
        raw = bind(node) if known else {f"argument_{index}": argument for index, argument in enumerate(node.args)}
        arguments = {key: map_arg(argument, self._lookup) for key, argument in raw.items()}
        call = Call(node, plain, arguments, raw, layer_name(node))
        self.recorder.call = call
        handler = HANDLERS.get(plain) if known else None
        if handler is None and not call.tensors:
            return unlabelled(node.meta["value"])
        if handler is None:
            return self._freeze_call(call, f"no label rule for operator {node.target}")
        checkpoint = self.recorder.checkpoint()
        try:
            result = handler(self.recorder, call)
            return _checked(result, node)
        except UnlabelledOperator as refusal:
            self.recorder.roll_back(checkpoint)
            return self._freeze_call(call, str(refusal))
        except Exception as error:
            # A rule that fails costs channels and no job: the call stays whole, and the report names the fault.
            self.recorder.roll_back(checkpoint)
            self.faults.append(f"{node.name} ({node.target}): {type(error).__name__}: {error}")
            return self._freeze_call(call, f"the label rule of {node.target} does not cover this call")

    def _lookup(self, node: Node) -> Any:
        return self.values[node.name]

    def _freeze_call(self, call: Call, reason: str) -> Any:
        for value in tensor_arguments(call.arguments.values()):
            for vector in value.labels.values():
                self.recorder.freeze(vector, reason)
        rows = self.recorder.mac_rows
        if not rows or rows[-1].node != call.node.name:
            # No rule has counted it.
            macs = _counted_macs(call.node)
            if macs:
                self.recorder.macs(macs, [])
        return unlabelled(call.node.meta["value"])


def _checked(result: Any, node: Node) -> Any:
    """The handler's result with labels of size-1 axes dropped; raises where it contradicts the graph's own shapes."""
    if isinstance(result, tuple):
        metas = node.meta["value"]
        if len(result) != len(metas):
            raise ValueError(f"{len(result)} results, expected {len(metas)}")
        return tuple(_checked_value(value, meta) for value, meta in zip(result, metas, strict=True))
    return _checked_value(result, node.meta["value"])


def _checked_value(value: Any, meta: Any) -> Any:
    if not isinstance(meta, TensorMeta):
        return value
    if value.shape != meta.shape:
        raise ValueError(f"shape {value.shape}, expected {meta.shape}")
    for axis, vector in value.labels.items():
        if vector is not None and len(vector) != meta.shape[axis]:
            raise ValueError(f"{len(vector)} labels on axis {axis} of shape {meta.shape}")
    labels = {axis: vector for axis, vector in sorted(value.labels.items()) if vector is not None and len(vector) > 1}
    return Value(value.shape, labels)


def _counted_macs(node: Node) -> int:
    """MACs of a call without a handler, by running it on meta tensors: everything it touches is frozen, so it is a constant."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0

    def example(argument: Node) -> Any:
        return _meta_tensor(argument.meta["value"])

    try:
        with FlopCounterMode(display=False) as counter:
            node.target(*map_arg(node.args, example), **map_arg(node.kwargs, example))
    except (RuntimeError, TypeError, ValueError, IndexError):
        # Data-dependent operators cannot run on meta tensors, each in its own words; none of them multiplies matrices.
        return 0
    return counter.get_total_flops() // 2


def _meta_tensor(meta: Any) -> Any:
    if isinstance(meta, TensorMeta):
        return torch.empty(meta.shape, dtype=meta.dtype, device="meta")
    if isinstance(meta, tuple):
        return tuple(_meta_tensor(item) for item in meta)
    return meta
