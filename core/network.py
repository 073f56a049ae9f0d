"""Network: the one representation of a model inside the engine.

A network is an exported ATen graph plus its tensors under their original qualified names:

    graph    placeholder → get_attr "layer1.0.conv1.weight" → aten.conv2d.default(…) → … → output ((tensor, …),)
    tensors  {"layer1.0.conv1.weight": Tensor, "layer1.0.bn1.running_mean": Tensor, …}

Every node that yields tensors carries `node.meta["value"]`: a `TensorMeta` (or a tuple of them) whose shape is the one
**at batch 1**, so that analyses see plain integers even where the graph is symbolic; `node.meta["path"]` is the
qualified name of the module that made it ("" at the top). A symbolic size (`aten.sym_size`) has `meta["value"]` = int,
its value at batch 1. Values are immutable: passes return new networks and never touch the graph that they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import EngineError


@dataclass(frozen=True)
class TensorMeta:
    """Shape at batch 1 and element type of one value."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network: its name and its shape without the batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Interface:
    """What an uploaded graph promises to its callers beside its inputs and outputs; delivered ONNX files keep it.

    batch_size: 1 where it takes one image at a time, None for any number. batch_name: the name of that axis.
    tail: what follows the network's outputs in the file (an ONNX model from them to the file's own outputs), or nothing.
    """

    batch_size: int | None = None
    batch_name: str = "batch"
    tail: bytes = b""


@dataclass(frozen=True)
class Network:
    """An immutable CNN: graph, tensors by original name, and the names of the trainable ones."""

    graph: torch.fx.Graph
    tensors: Mapping[str, Tensor]
    parameter_names: frozenset[str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    architecture: str | None = None
    architecture_args: Mapping[str, Any] = field(default_factory=dict)
    interface: Interface = field(default_factory=Interface)

    @staticmethod
    def from_module(
        module: nn.Module,
        input_shapes: Mapping[str, Sequence[int]],
        *,
        architecture: str | None = None,
        architecture_args: Mapping[str, Any] | None = None,
    ) -> Network:
        """Export `module` (put in eval mode) with a dynamic batch dimension.

        input_shapes: shape of each positional input without the batch dimension, in call order.
        Raises EngineError("invalid_model") when the module cannot be exported.
        """
        return _export(module, input_shapes, architecture, dict(architecture_args or {}))

    def module(self) -> torch.fx.GraphModule:
        """A runnable graph module over copies of nothing: it shares this network's tensors. Returns a tuple of outputs."""
        return build_module(self.graph, self.tensors, self.parameter_names)

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Evaluate on a batch without gradients."""
        with torch.no_grad():
            return self.module()(*inputs)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Network:
        """The same graph over other values; the names must be the same."""
        if tensors.keys() != self.tensors.keys():
            raise ValueError("with_tensors needs exactly the names of the network")
        return replace(self, tensors=MappingProxyType(dict(tensors)))

    def to(self, dtype: torch.dtype) -> Network:
        """Floating-point tensors converted to `dtype` (used by the float64 check)."""
        return self.with_tensors({n: t.to(dtype) if t.is_floating_point() else t for n, t in self.tensors.items()})

    def random_inputs(self, batch: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Seeded standard-normal inputs of the right shapes."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn((batch, *spec.shape), generator=generator, dtype=dtype) for spec in self.inputs)


def build_module(
    graph: torch.fx.Graph, tensors: Mapping[str, Tensor], parameter_names: frozenset[str]
) -> torch.fx.GraphModule:
    """A GraphModule over `graph` holding the tensors that it reads under their qualified names (sharing storage)."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        *path, leaf = node.target.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        tensor = tensors[node.target]
        if node.target in parameter_names and tensor.is_floating_point():
            owner.register_parameter(leaf, nn.Parameter(tensor.detach(), requires_grad=False))
        else:
            owner.register_buffer(leaf, tensor)
    return torch.fx.GraphModule(root, graph)


def _export(
    module: nn.Module, input_shapes: Mapping[str, Sequence[int]], architecture: str | None, args: dict[str, Any]
) -> Network:
    module = module.eval()
    parameter_names = frozenset(name for name, _ in module.named_parameters(remove_duplicate=False))
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    # Batch 2, because torch.export specialises sizes 0 and 1.
    example = tuple(torch.zeros((2, *shape)) for shape in input_shapes.values())
    batch = torch.export.Dim("batch")
    dynamic = tuple({0: batch} for _ in example)
    try:
        program = torch.export.export(module, example, dynamic_shapes=dynamic)
        exported = program.module(check_guards=False).graph
    except Exception as error:
        raise EngineError(
            "invalid_model",
            f"The network cannot be exported for input shape(s) {[list(s) for s in input_shapes.values()]}: "
            f"{_first_line(error)}. Check `input_shape` and that the forward pass has no data-dependent control flow.",
        ) from error
    # Constants that export lifted out of the forward code have no key in the user's state_dict.
    constants = {
        name: value for name, value in program.constants.items() if isinstance(value, Tensor) and name not in state
    }
    graph, inputs, outputs = _normalise(exported, list(input_shapes))
    tensors = {**state, **{name: value.detach() for name, value in constants.items()}}
    missing = [node.target for node in graph.nodes if node.op == "get_attr" and node.target not in tensors]
    if missing:
        raise EngineError(
            "invalid_model", f"The exported graph reads tensors that the checkpoint does not hold: {missing[:10]}"
        )
    return Network(
        graph=graph,
        tensors=MappingProxyType(tensors),
        parameter_names=parameter_names,
        inputs=inputs,
        outputs=outputs,
        architecture=architecture,
        architecture_args=MappingProxyType(args),
    )


def _normalise(
    exported: torch.fx.Graph, input_names: Sequence[str]
) -> tuple[torch.fx.Graph, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Copy an exported graph to the plain form: flat tuple of outputs, no pytree code, no unused reads, our meta only."""
    graph = torch.fx.Graph()
    mapping: dict[torch.fx.Node, torch.fx.Node] = {}
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    names = iter(input_names)
    for node in exported.nodes:
        if node.op == "output":
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(node.args[0]) if isinstance(leaf, torch.fx.Node)]
            result = graph.output(tuple(mapping[leaf] for leaf in leaves))
            result.meta = {"path": ""}
            for index, leaf in enumerate(leaves):
                meta = mapping[leaf].meta["value"]
                name = "output" if len(leaves) == 1 else f"output_{index}"
                outputs.append(TensorSpec(name, meta.shape[1:], meta.dtype))
            continue
        if node.op in ("get_attr", "call_function") and not node.users and not _writes(node):
            continue
        if node.op == "placeholder":
            name = next(names)
            copy = graph.placeholder(name)
            copy.meta = {"path": "", "value": _at_batch_one(node.meta["val"])}
            inputs.append(TensorSpec(name, copy.meta["value"].shape[1:], copy.meta["value"].dtype))
        elif node.op in ("get_attr", "call_function"):
            copy = graph.node_copy(node, lambda n: mapping[n])
            copy.meta = {"path": _module_path(node), "value": _at_batch_one(node.meta.get("val"))}
        else:
            raise EngineError("invalid_model", f"The exported graph has an unsupported node {node.op} {node.target!r}.")
        mapping[node] = copy
    graph.lint()
    return graph, tuple(inputs), tuple(outputs)


def _writes(node: torch.fx.Node) -> bool:
    """Whether a call changes one of its arguments (`y[:, 0] = 0`), so that it matters though nobody reads its result."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _module_path(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty_nn_module_stack")]
    path = paths[-1] if paths else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _at_batch_one(value: Any) -> Any:
    """TensorMeta of an exported value with every symbolic size replaced by its value at batch 1."""
    if isinstance(value, Tensor):
        return TensorMeta(tuple(_int_at_batch_one(size) for size in value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_at_batch_one(item) for item in value)
    if isinstance(value, torch.SymInt):
        return _int_at_batch_one(value)
    return value


def _int_at_batch_one(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
