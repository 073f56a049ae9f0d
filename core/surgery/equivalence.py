"""Verify: the masked reference.

The original network runs with every contraction blind to the removed channels (`core.surgery.masked_run`). What a
correct surgery leaves must agree with that, in float64, at the outputs and at the kept channels of every layer that
multiplies or reads parameters, relative to each tensor's own norm. The reference never uses a rewritten literal, so it
is independent of the surgery.

A tensor that responds neither to the input nor to the masking (a zero-initialised γ upstream, a dead layer) proves
nothing. It is reported as insensitive, and checked again on copies of both networks that respond everywhere
(`core.surgery.randomised`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node

from core.analysis.channels import ChannelAnalysis
from core.analysis.trace import layer_name
from core.errors import first_line, is_out_of_memory
from core.network import Network, TensorMeta
from core.surgery.masked_run import MaskedRun, Run, kept_part
from core.surgery.randomised import responsive_copy
from core.surgery.slicing import slice_tensors

# Correct surgery differs by rounding only, 1e-14 in float64.
TOLERANCE = 1e-9
# A response this small could hide an error near the tolerance.
_SENSITIVITY = 1000 * TOLERANCE
# What is this much smaller than the largest number so far is what rounding left of a sum that cancels (the mean of an
# instance-normalised map), so it is compared with that number, and proves nothing.
_NOISE = 1e-13
_BATCH = 3
# Responsive copies to try: a narrow layer behind a ReLU may be dead in one of them.
_DRAWS = 3


@dataclass(frozen=True)
class Equivalence:
    """Outcome of `verify`.

    max_relative_error: worst ‖pruned − reference‖ / ‖reference‖ of any compared tensor (inf where it cannot be
    computed). insensitive: layers whose tensors showed no response in the network as it is. checked: tensors that did
    respond, there or on a responsive copy. unproven: layers that responded nowhere; they count as agreeing, not as
    checked, and an output among them fails the whole. worst: the layer with the largest error. problem: why the pruned
    network could not be run or compared, else None.
    """

    max_relative_error: float
    passed: bool
    insensitive: tuple[str, ...]
    checked: int
    unproven: tuple[str, ...] = ()
    worst: str | None = None
    problem: str | None = None

    @property
    def reason(self) -> str:
        """Why it did not pass, for a person."""
        return self.problem or f"relative error {self.max_relative_error:.1e} at {self.worst}"


def verify(
    network: Network, analysis: ChannelAnalysis, keep: np.ndarray, pruned: Network, *, seed: int = 0
) -> Equivalence:
    """Compare `pruned` with the masked `network` on random inputs. Never raises for a wrong `pruned`: it fails it."""
    kept = analysis.kept_labels(keep)
    inputs = network.random_inputs(_BATCH, seed, torch.float64)
    first = _compare(network, analysis, kept, pruned, inputs)
    insensitive = [name for name, one in first.items() if not one.sensitive]
    results = list(first.values())
    problem = _changed_tensor(network, analysis, keep, pruned) if insensitive else None
    silent = set(insensitive)
    for draw in range(_DRAWS):
        if not silent or problem or any(one.problem for one in results):
            break
        copy = responsive_copy(network, seed + draw, inputs, analysis.trace, kept)
        twin = replace(pruned, tensors=slice_tensors(copy, analysis, keep))
        compared = _compare(copy, analysis, kept, twin, inputs)
        results += compared.values()
        shown = {name for name in silent if name in compared and compared[name].sensitive}
        silent -= shown
        if not shown and not any(first[name].is_output for name in silent):
            # What is left depends on nothing that could show: the class token before any attention, for one.
            break
    worst = max(results, key=lambda one: one.error)
    mute = [name for name in silent if first[name].is_output]
    problem = problem or worst.problem
    if mute and problem is None and worst.error <= TOLERANCE:
        problem = f"the output {first[mute[0]].layer} responds neither to the input nor to what is removed, so nothing is proven"
    return Equivalence(
        max_relative_error=worst.error,
        passed=worst.error <= TOLERANCE and problem is None,
        insensitive=_layers(first, insensitive),
        checked=len(first) - len(silent),
        unproven=_layers(first, [name for name in first if name in silent]),
        worst=worst.layer,
        problem=problem,
    )


def _layers(compared: Mapping[str, _Comparison], names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(compared[name].layer for name in names))


@dataclass(frozen=True)
class _Comparison:
    node: str
    layer: str
    error: float
    sensitive: bool
    is_output: bool
    problem: str | None = None


def _compare(
    network: Network, analysis: ChannelAnalysis, kept: np.ndarray, pruned: Network, inputs: tuple[Tensor, ...]
) -> dict[str, _Comparison]:
    """One comparison per output and per layer that reads parameters, by node name."""
    graph, trace = network.graph, analysis.trace
    plain = Run(graph, network.tensors, inputs)
    reference = MaskedRun(graph, network.tensors, inputs, trace, kept)
    twins = _Twins(pruned.graph, Run(pruned.graph, pruned.tensors, inputs))
    from_input = _downstream(graph, lambda node: node.op == "placeholder")
    from_mask = _downstream(graph, lambda node: node.name in reference.masked_nodes)
    outputs = set(next(iter(reversed(graph.nodes))).all_input_nodes)
    multiplying = {row.node for row in trace.mac_rows}
    scale = 0.0
    found: dict[str, _Comparison] = {}
    with torch.no_grad():
        for node in graph.nodes:
            original = plain.step(node)
            problem = twins.run_to(node.name)
            compared = node in outputs or (
                _is_real(node) and (_multiplies(node, multiplying) or _reads_parameters(node))
            )
            try:
                masked = reference.step(node)
                if compared:
                    expected = _numbers(kept_part(masked, trace.values[node.name], kept))
                    unmasked = _numbers(kept_part(original, trace.values[node.name], kept))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if is_out_of_memory(error):
                    raise
                layer, reason = layer_name(node), first_line(error)
                problem = f"the masked reference fails in {layer}: {reason}"
                found[node.name] = _Comparison(node.name, layer, math.inf, False, node in outputs, problem)
                return found
            if compared:
                actual = twins.value(node.name)
                size = float(expected.abs().max()) if expected.numel() else 0.0
                scale = max(scale, size)
                noise = size <= _NOISE * scale
                error, problem = _relative_error(expected, actual, problem, layer_name(node), scale if noise else None)
                sensitive = (
                    not noise
                    and (node not in from_input or _responds_to_input(expected))
                    and (node not in from_mask or _distance(expected, unmasked) >= _SENSITIVITY)
                )
                found[node.name] = _Comparison(node.name, layer_name(node), error, sensitive, node in outputs, problem)
            plain.release(node)
            reference.release(node)
            twins.release(node.name)
    return found


class _Twins:
    """The pruned network, run in step with the original: nodes correspond by name."""

    def __init__(self, graph: Graph, run: Run) -> None:
        self._run = run
        self._by_name = {node.name: node for node in graph.nodes}
        self._order = list(graph.nodes)
        self._next = 0
        self._problem: str | None = None

    def run_to(self, name: str) -> str | None:
        """Run everything up to and with the node `name`; returns why that is impossible, from then on."""
        if name not in self._by_name or self._problem:
            return self._problem
        twin = self._by_name[name]
        while self._next < len(self._order) and twin not in self._run.values:
            node = self._order[self._next]
            self._next += 1
            try:
                self._run.step(node)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # Whatever a wrong graph raises where it runs, it is wrong.
                self._problem = f"the pruned network fails in {layer_name(node)}: {first_line(error)}"
                break
            if node is twin:
                break
        return self._problem

    def value(self, name: str) -> Any:
        return self._run.values.get(self._by_name.get(name))

    def release(self, name: str) -> None:
        if name in self._by_name and not self._problem:
            self._run.release(self._by_name[name])


def _is_real(node: Node) -> bool:
    """Whether the node's result is one tensor of floating-point numbers."""
    meta = node.meta.get("value")
    return isinstance(meta, TensorMeta) and meta.dtype.is_floating_point


def _multiplies(node: Node, multiplying: set[str]) -> bool:
    """Whether the node is a product, or one of the results of a call that has several (a recurrent layer)."""
    return node.name in multiplying or (node.target is operator.getitem and node.args[0].name in multiplying)


def _reads_parameters(node: Node) -> bool:
    return node.op == "call_function" and any(argument.op == "get_attr" for argument in node.all_input_nodes)


def _downstream(graph: Graph, is_source: Any) -> set[Node]:
    """Sources and every tensor that is computed from one."""
    found: set[Node] = set()
    for node in graph.nodes:
        computed = any(argument in found for argument in node.all_input_nodes)
        if is_source(node) or (computed and not isinstance(node.meta.get("value"), int)):
            found.add(node)
    return found


def _relative_error(
    expected: Tensor, actual: Any, problem: str | None, layer: str, scale: float | None
) -> tuple[float, str | None]:
    """Relative to the tensor's own norm; to numbers as large as `scale` where it is given."""
    if not isinstance(actual, Tensor):
        return math.inf, problem or f"{layer} is missing from the pruned network"
    if actual.shape != expected.shape:
        return math.inf, f"{layer} has shape {tuple(actual.shape)} at batch {_BATCH}, expected {tuple(expected.shape)}"
    actual = _numbers(actual)
    if scale is None:
        error = _distance(actual, expected)
    else:
        error = float((actual - expected).abs().max()) / scale if scale and expected.numel() else 0.0
    return (error, problem) if math.isfinite(error) else (math.inf, problem or f"{layer} is not finite")


def _numbers(tensor: Tensor) -> Tensor:
    """Places (of the largest score) and truth values, as numbers."""
    return tensor if tensor.is_floating_point() else tensor.double()


def _distance(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖other‖; 0 for two zeros."""
    difference = float(torch.linalg.vector_norm(one - other))
    norm = float(torch.linalg.vector_norm(other))
    return difference / norm if norm > 0 else (0.0 if difference == 0 else math.inf)


def _responds_to_input(tensor: Tensor) -> bool:
    """Whether the images of the batch lead to different results."""
    if tensor.ndim == 0 or tensor.shape[0] % _BATCH:
        return True
    images = tensor.reshape(_BATCH, -1)
    return _distance(images[1:], images[:1].expand_as(images[1:])) >= _SENSITIVITY


def _changed_tensor(network: Network, analysis: ChannelAnalysis, keep: np.ndarray, pruned: Network) -> str | None:
    """A tensor of `pruned` that is not a slice of the original's: the randomised copy would not speak for it."""
    for name, expected in slice_tensors(network, analysis, keep).items():
        if name not in pruned.tensors or not torch.equal(pruned.tensors[name], expected):
            return f"{name} is not the kept part of the original tensor"
    return None
