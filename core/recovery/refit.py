"""Closed-form refit: each layer's weights solved anew, in order of execution, so that it says again what it said.

Pruning leaves a layer with fewer inputs, and those that are left have drifted. On a few hundred images, labels not
needed, the weights that best reproduce the original's output from the inputs that the layer now gets are the solution of
one least-squares problem (He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, §3):

    W  =  argmin ‖ X Wᵀ − T ‖²  +  λ ‖ W − W₀ ‖²

X are the inputs in the **already refitted** prefix and T the **original's** outputs at the kept channels, in front of
batch-norm, whose statistics then fit again; with X of the original instead, errors would add up from layer to layer.
Both networks are run in step, node by node, so the whole costs two forward passes and a Gram matrix per layer.

Where the layer's output is added to a branch that has been computed already (a residual block), T also takes up what that
branch has lost: the sum is what the next block reads.

How one layer is solved, and λ chosen, is `core.recovery.least_squares`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from core.analysis.schema import bind, operator_name
from core.network import Network
from core.recovery.least_squares import Solver, solve
from core.recovery.patches import MatrixLayer, matrix_layer
from core.recovery.recalibration import Kept

# A layer with more columns than this would take minutes to solve.
_MAX_COLUMNS = 8192
# An input that has drifted by less than this share of itself needs no other weights.
_DRIFT = 1e-6
# Where batch-norm scales a channel by less than this share of the layer's median, a branch's loss is not put on it.
_LEAST_SCALE = 1e-2


@dataclass(frozen=True)
class Refit:
    """network: the refitted one. layers: per refitted layer, by its weight's name, (error before, error after) on the
    judging images, relative to the original's output."""

    network: Network
    layers: Mapping[str, tuple[float, float]]


def refit(
    network: Network,
    original: Network,
    inputs: Tensor,
    *,
    kept: Kept,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    solvers: Mapping[str, Solver] | None = None,
) -> Refit:
    """`network` with the weights of its convolutions and linear layers refitted to `original` on `inputs` [n, …].

    kept: what is left of the original's tensors (`core.surgery.kept_indices`). A weight that is computed, or that several
    calls share, keeps its values, and so does a transposed convolution. solvers: by weight, another way to solve a layer
    than `solve`; such a layer is solved whether or not its inputs have drifted.
    """
    return _Refitter(network, original, kept, torch.device(device), progress, solvers or {}).run(inputs)


class _Refitter:
    """Runs both networks in step and replaces weights on the way."""

    def __init__(
        self,
        network: Network,
        original: Network,
        kept: Kept,
        device: torch.device,
        progress: Callable[[int, int], None] | None,
        solvers: Mapping[str, Solver],
    ) -> None:
        self._network = network
        self._solvers = solvers
        self._kept = kept
        self._device = device
        self._progress = progress
        self._module, self._original = (net.module().to(device) for net in (network, original))
        self._counterpart = {node.name: node for node in self._original.graph.nodes}
        self._tensors = dict(network.tensors)
        self._errors: dict[str, tuple[float, float]] = {}

    @torch.no_grad()
    def run(self, inputs: Tensor) -> Refit:
        inputs = inputs.to(self._device)
        now, before = _Stepper(self._module, inputs), _Stepper(self._original, inputs)
        nodes = list(self._module.graph.nodes)
        originals = iter(self._original.graph.nodes)
        for position, node in enumerate(nodes):
            # Surgery may have added nodes of its own, which have no counterpart.
            if node.name in self._counterpart:
                before.advance_to(self._counterpart[node.name], originals)
            layer = self._layer(node)
            if layer is not None:
                self._fit(node, layer, now, before)
                if self._progress is not None:
                    self._progress(position + 1, len(nodes))
            now.step(node)
            now.forget()
            before.forget()
        return Refit(self._network.with_tensors(self._tensors), self._errors)

    def _layer(self, node: Node) -> MatrixLayer | None:
        if node.op != "call_function" or operator_name(node.target) not in ("conv1d", "conv2d", "conv3d", "linear"):
            return None
        call = bind(node)
        stored = [call["weight"], *([call["bias"]] if call["bias"] is not None else [])]
        if any(argument.op != "get_attr" or self._shared(argument) for argument in stored):
            return None
        layer = matrix_layer(operator_name(node.target), call, self._tensors[call["weight"].target])
        columns = self._tensors[layer.weight][0].numel()
        return layer if columns < _MAX_COLUMNS and len(node.meta["value"].shape) >= 2 else None

    def _shared(self, argument: Node) -> bool:
        """Whether other calls read the same storage."""
        key = self._network.tensors[argument.target].data_ptr()
        readers = [
            user
            for other in argument.graph.nodes
            if other.op == "get_attr" and self._network.tensors[other.target].data_ptr() == key
            for user in other.users
        ]
        return len(readers) != 1

    def _fit(self, node: Node, layer: MatrixLayer, now: _Stepper, before: _Stepper) -> None:
        source = bind(node)["input"]
        current, reference = now.values[source], before.values.get(self._counterpart[source.name])
        solver = self._solvers.get(layer.weight)
        if solver is None and reference is not None and _same(current, reference):
            return
        rows = self._kept_rows(layer)
        target = _select(before.values[self._counterpart[node.name]], rows, 1 if layer.rank else -1)
        target = target + self._loss_of_branch(node, layer, rows, now, before)
        weight = self._tensors[layer.weight].to(self._device)
        bias = self._tensors[layer.bias].to(self._device) if layer.bias is not None else None
        found = (solver or solve)(layer, current, target, weight, bias)
        if found is None:
            return
        self._errors[layer.weight] = found.errors
        self._put(now, layer.weight, found.weight)
        if layer.bias is not None:
            self._put(now, layer.bias, found.bias)

    def _put(self, now: _Stepper, name: str, value: Tensor) -> None:
        stored = self._network.tensors[name]
        self._tensors[name] = value.to("cpu", stored.dtype)
        now.replace(name, value.to(stored.dtype))

    def _kept_rows(self, layer: MatrixLayer) -> Tensor | None:
        chosen = self._kept.get(layer.weight, (None,))[0]
        return None if chosen is None else torch.from_numpy(chosen).to(self._device)

    def _loss_of_branch(
        self, node: Node, layer: MatrixLayer, rows: Tensor | None, now: _Stepper, before: _Stepper
    ) -> Tensor | float:
        """What the layer has to add, in front of its batch-norm, to make up for the other operand of the sum it feeds."""
        if layer.rank == 0:
            return 0.0
        scale: Tensor | None = None
        user = _only_user(node)
        if user is not None and operator_name(user.target) == "batch_norm":
            call = bind(user)
            names = [call[name].target if call[name] is not None else None for name in ("weight", "running_var")]
            if call["training"] or names[1] is None or call["input"] is not node:
                return 0.0
            variance = self._tensors[names[1]].to(self._device)
            gain = torch.ones_like(variance) if names[0] is None else self._tensors[names[0]].to(self._device)
            scale = gain / (variance + call["eps"]).sqrt()
            last, user = user, _only_user(user)
        else:
            last = node
        if user is None or operator_name(user.target) not in ("add", "add_"):
            return 0.0
        call = bind(user)
        if call["alpha"] != 1:
            return 0.0
        others = [call[name] for name in ("self", "other") if call[name] is not last]
        if len(others) != 1 or not isinstance(others[0], Node):
            return 0.0
        branch, counterpart = now.values.get(others[0]), before.values.get(self._counterpart[others[0].name])
        if branch is None or counterpart is None or branch.shape[1:] != (node.meta["value"].shape[1:]):
            return 0.0
        lost = _select(counterpart, rows, 1) - branch
        if scale is None:
            return lost
        scale = scale.view(-1, *[1] * layer.rank)
        usable = scale.abs() > _LEAST_SCALE * scale.abs().median()
        return torch.where(usable, lost / torch.where(usable, scale, 1.0), 0.0)


class _Stepper:
    """One network on one batch, a node at a time; values live until their last reader."""

    def __init__(self, module: GraphModule, inputs: Tensor) -> None:
        self._interpreter = Interpreter(module, garbage_collect_values=False)
        self._interpreter.args_iter = iter([inputs])
        self.values: dict[Node, object] = self._interpreter.env
        self._last_reader: dict[Node, Node] = {}
        for node in module.graph.nodes:
            self._last_reader[node] = node
            for read in node.all_input_nodes:
                self._last_reader[read] = node
        self._dying: dict[Node, list[Node]] = {}
        for node, reader in self._last_reader.items():
            self._dying.setdefault(reader, []).append(node)
        self._done: list[Node] = []

    def step(self, node: Node) -> None:
        self.values[node] = self._interpreter.run_node(node)
        self._done.append(node)

    def advance_to(self, node: Node, nodes: object) -> None:
        """Run `nodes` up to and including `node`; those that the other network has lost on the way, too."""
        for one in nodes:
            self.step(one)
            if one is node:
                return

    def forget(self) -> None:
        for node in self._done:
            for dead in self._dying.get(node, ()):
                self.values.pop(dead, None)
        self._done.clear()

    def replace(self, name: str, value: Tensor) -> None:
        for node in self.values:
            if node.op == "get_attr" and node.target == name:
                self.values[node] = value


def _select(value: Tensor, rows: Tensor | None, axis: int) -> Tensor:
    return value if rows is None else value.index_select(axis, rows)


def _same(value: Tensor, reference: Tensor) -> bool:
    return value.shape == reference.shape and bool((value - reference).norm() <= _DRIFT * reference.norm())


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None
