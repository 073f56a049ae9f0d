"""Verify: the masked reference.

The original network runs with every contraction blind to the removed channels: at each reader (convolution, linear) the
weight is zero at the removed inputs. What a correct surgery leaves must agree with that, in float64, at the outputs and
at the kept channels of every layer that multiplies or reads parameters, relative to each tensor's own norm. The
reference never uses a rewritten literal, so it is independent of the surgery.

A tensor that responds neither to the input nor to the masking (a zero-initialised γ upstream, a dead layer) proves
nothing. It is reported as insensitive, and checked again on copies of both networks whose constant and vanishing values
are drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from core.analysis.channels import ChannelAnalysis
from core.analysis.schema import bind
from core.analysis.trace import layer_name
from core.analysis.values import Value
from core.network import Network, TensorMeta
from core.surgery.slicing import slice_tensors

# Correct surgery differs by rounding only, 1e-14 in float64.
TOLERANCE = 1e-9
# A response this small could hide an error near the tolerance.
_SENSITIVITY = 1000 * TOLERANCE
_BATCH = 3
# Randomised copies to try until every tensor responds: a narrow layer behind a ReLU may be dead in one of them.
_DRAWS = 4


@dataclass(frozen=True)
class Equivalence:
    """Outcome of `verify`.

    max_relative_error: worst ‖pruned − reference‖ / ‖reference‖ of any compared tensor (inf where it cannot be
    computed). insensitive: layers whose tensors showed no response in the network as it is. checked: tensors that did
    respond, there or on the randomised copy. worst: the layer with the largest error. problem: why the pruned network
    could not be run or compared, else None.
    """

    max_relative_error: float
    passed: bool
    insensitive: tuple[str, ...]
    checked: int
    worst: str | None = None
    problem: str | None = None


def verify(
    network: Network, analysis: ChannelAnalysis, keep: np.ndarray, pruned: Network, *, seed: int = 0
) -> Equivalence:
    """Compare `pruned` with the masked `network` on random inputs. Never raises for a wrong `pruned`: it fails it."""
    kept = analysis.kept_labels(keep)
    first = _compare(network, analysis, kept, pruned, seed)
    insensitive = {name: None for name, one in first.items() if not one.sensitive}
    second: list[_Comparison] = []
    problem = _changed_tensor(network, analysis, keep, pruned) if insensitive else None
    silent = set(insensitive)
    for draw in range(_DRAWS):
        if not silent:
            break
        randomised = _randomised(network, seed + draw, positive=draw % 2 == 1)
        twin = replace(pruned, tensors=slice_tensors(randomised, analysis, keep))
        compared = _compare(randomised, analysis, kept, twin, seed + draw)
        second += [compared[name] for name in insensitive]
        silent -= {name for name in silent if compared[name].sensitive}
    results = [*first.values(), *second]
    worst = max(results, key=lambda one: one.error)
    problem = problem or worst.problem
    responsive = {one.node for one in results if one.sensitive}
    output_shown = all(one.node in responsive for one in first.values() if one.is_output)
    return Equivalence(
        max_relative_error=worst.error,
        passed=worst.error <= TOLERANCE and problem is None and output_shown,
        insensitive=tuple(dict.fromkeys(first[name].layer for name in insensitive)),
        checked=len(responsive),
        worst=worst.layer,
        problem=problem,
    )


@dataclass(frozen=True)
class _Comparison:
    node: str
    layer: str
    error: float
    sensitive: bool
    is_output: bool
    problem: str | None = None


class _Run:
    """Evaluates a graph node by node, dropping each value after its last reader."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.values: dict[Node, Any] = {}
        self._tensors = tensors
        self._inputs = iter(inputs)
        self._last_use: dict[Node, list[Node]] = {}
        last = {}
        for node in graph.nodes:
            for argument in node.all_input_nodes:
                last[argument] = node
        for argument, reader in last.items():
            self._last_use.setdefault(reader, []).append(argument)

    def step(self, node: Node, masked: tuple[str, int, Tensor] | None = None) -> Any:
        """Compute one node. masked: (argument, axis, removed positions) to be zero in what the call reads."""
        if node.op == "placeholder":
            self.values[node] = next(self._inputs).clone()
        elif node.op == "get_attr":
            self.values[node] = self._tensors[node.target]
        elif node.op == "output":
            return None
        else:
            self.values[node] = self._call(node, masked)
        return self.values[node]

    def release(self, node: Node) -> None:
        for argument in self._last_use.get(node, ()):
            del self.values[argument]

    def _call(self, node: Node, masked: tuple[str, int, Tensor] | None) -> Any:
        args, kwargs = node.args, node.kwargs
        replaced: dict[Node, Tensor] = {}
        if masked is not None:
            argument, axis, removed = masked
            source = bind(node)[argument]
            replaced[source] = self.values[source].index_fill(axis, removed, 0)
        lookup = lambda one: replaced.get(one, self.values.get(one))  # noqa: E731
        return node.target(*map_arg(args, lookup), **map_arg(kwargs, lookup))


def _compare(
    network: Network, analysis: ChannelAnalysis, kept: np.ndarray, pruned: Network, seed: int
) -> dict[str, _Comparison]:
    """One comparison per output and per layer that reads parameters, by node name."""
    inputs = network.random_inputs(_BATCH, seed, torch.float64)
    wide, narrow = network.to(torch.float64), pruned.to(torch.float64)
    plain, reference, smaller = (_Run(one.graph, one.tensors, inputs) for one in (wide, wide, narrow))
    removed = {
        name: (read.argument, read.axis, torch.from_numpy(np.flatnonzero(~kept[read.labels])))
        for name, reads in analysis.trace.reads.items()
        for read in reads
        if not kept[read.labels].all()
    }
    from_input = _downstream(wide.graph, lambda node: node.op == "placeholder")
    from_mask = _downstream(wide.graph, lambda node: node.name in removed)
    outputs = set(next(iter(reversed(wide.graph.nodes))).all_input_nodes)
    multiplying = {row.node for row in analysis.trace.mac_rows}
    twins = _Twins(narrow.graph, smaller)
    found: dict[str, _Comparison] = {}
    with torch.no_grad():
        for node in wide.graph.nodes:
            original = plain.step(node)
            masked = reference.step(node, removed.get(node.name))
            problem = twins.run_to(node.name)
            if node in outputs or node.name in multiplying or _reads_parameters(node):
                expected = _kept_part(masked, analysis.trace.values[node.name], kept)
                unmasked = _kept_part(original, analysis.trace.values[node.name], kept)
                actual = twins.value(node.name)
                error, problem = _relative_error(expected, actual, problem, layer_name(node))
                sensitive = (node not in from_input or _responds_to_input(expected)) and (
                    node not in from_mask or _distance(expected, unmasked) >= _SENSITIVITY
                )
                found[node.name] = _Comparison(node.name, layer_name(node), error, sensitive, node in outputs, problem)
            plain.release(node)
            reference.release(node)
            twins.release(node.name)
    return found


class _Twins:
    """The pruned network, run in step with the original: nodes correspond by name."""

    def __init__(self, graph: Graph, run: _Run) -> None:
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
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self._problem = f"the pruned network fails in {layer_name(node)}: {reason[0][:200]}"
                break
            if node is twin:
                break
        return self._problem

    def value(self, name: str) -> Any:
        return self._run.values.get(self._by_name.get(name))

    def release(self, name: str) -> None:
        if name in self._by_name and not self._problem:
            self._run.release(self._by_name[name])


def _reads_parameters(node: Node) -> bool:
    return (
        node.op == "call_function"
        and isinstance(node.meta["value"], TensorMeta)
        and node.meta["value"].dtype.is_floating_point
        and any(argument.op == "get_attr" for argument in node.all_input_nodes)
    )


def _downstream(graph: Graph, is_source: Any) -> set[Node]:
    """Sources and every tensor that is computed from one."""
    found: set[Node] = set()
    for node in graph.nodes:
        computed = any(argument in found for argument in node.all_input_nodes)
        if is_source(node) or (computed and not isinstance(node.meta.get("value"), int)):
            found.add(node)
    return found


def _kept_part(tensor: Tensor, value: Value, kept: np.ndarray) -> Tensor:
    for axis, vector in value.labels.items():
        if not kept[vector].all():
            tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(kept[vector])))
    return tensor


def _relative_error(expected: Tensor, actual: Any, problem: str | None, layer: str) -> tuple[float, str | None]:
    if not isinstance(actual, Tensor):
        return math.inf, problem or f"{layer} is missing from the pruned network"
    if actual.shape != expected.shape:
        return math.inf, f"{layer} has shape {tuple(actual.shape)} at batch {_BATCH}, expected {tuple(expected.shape)}"
    error = _distance(actual, expected)
    return (error, problem) if math.isfinite(error) else (math.inf, problem or f"{layer} is not finite")


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


def _randomised(network: Network, seed: int, *, positive: bool) -> Network:
    """A copy in which little vanishes: whatever is constant or tiny beside the rest of its tensor is drawn anew.

    Signs of the other parameters are flipped at random, except that `positive` makes every one-dimensional tensor
    positive: gains and biases that keep a ReLU alive. What is nowhere negative stays so (variances), and buffers of
    several dimensions (fixed filters) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in network.tensors.items():
        flat = tensor.numel() == max(tensor.shape, default=1)
        if not tensor.is_floating_point() or tensor.numel() == 0 or not (flat or name in network.parameter_names):
            tensors[name] = tensor
            continue
        size = tensor.double().abs()
        usual = 1.0 if flat else math.sqrt(1 / math.prod(tensor.shape[1:]))
        typical = float(size.square().mean().sqrt())
        if typical < 1e-3 * usual or bool((size == size.flatten()[0]).all()):
            size, typical = torch.zeros_like(size), usual
        disturbance = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
        fresh = torch.where(size < 1e-2 * typical, torch.full_like(size, typical), size) * disturbance
        if not flat or not (positive or bool((tensor >= 0).all())):
            fresh *= torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        tensors[name] = fresh.to(tensor.dtype)
    return network.with_tensors(tensors)
