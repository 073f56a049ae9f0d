"""From a module to a network: `torch.export`, then the plain form that every pass reads.

The exported graph is copied once, and on the way

* subgraphs that run under `torch.no_grad()` or with autocast off are written out in place;
* conversions to the type that a value has already are dropped;
* outputs become one flat tuple, named after the keys of the dictionary that the model returned, if it did;
* flat expert weights (CondConv, Yang et al., arXiv 1904.04971) get the axes of the convolution that reads them, so that
  experts, filters and channels are axes like any other:

      view(matmul(routing, weight [E, O·I·k·k]), [B·O, I, k, k])
      → view(einsum("ab,bcdef->acdef", routing, weight [E, O, I, k, k]), [B·O, I, k, k])
"""

from __future__ import annotations

import string
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from core.errors import EngineError, is_out_of_memory
from core.network import Network, TensorMeta, TensorSpec

aten = torch.ops.aten
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_GRADIENT_SCOPE = "wrap_with_set_grad_enabled"
_AUTOCAST_SCOPE = "wrap_with_autocast"


def export_module(
    module: nn.Module, input_shapes: Mapping[str, Sequence[int]], architecture: str | None, args: dict[str, Any]
) -> Network:
    """See `Network.from_module`."""
    module = module.eval()
    parameter_names = frozenset(name for name, _ in module.named_parameters(remove_duplicate=False))
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    # Batch 2, because torch.export specialises sizes 0 and 1.
    example = tuple(torch.zeros((2, *shape)) for shape in input_shapes.values())
    batch = torch.export.Dim("batch")
    dynamic = tuple({0: batch} for _ in example)
    try:
        program = torch.export.export(module, example, dynamic_shapes=dynamic)
        exported = program.module(check_guards=False)
    except Exception as error:
        # A forward pass of any library, traced: there is no list of what that may raise.
        if is_out_of_memory(error):
            raise
        raise EngineError(
            "invalid_model",
            f"The network cannot be exported for input shape(s) {[list(s) for s in input_shapes.values()]}: "
            f"{_first_line(error)}. Check `input_shape` and that the forward pass has no data-dependent control flow.",
        ) from error
    # Constants that export lifted out of the forward code have no key in the user's state_dict.
    constants = {
        name: value for name, value in program.constants.items() if isinstance(value, Tensor) and name not in state
    }
    plain = _PlainForm(exported, list(input_shapes))
    tensors = {**state, **{name: value.detach() for name, value in constants.items()}}
    missing = [node.target for node in plain.graph.nodes if node.op == "get_attr" and node.target not in tensors]
    if missing:
        raise EngineError(
            "invalid_model", f"The exported graph reads tensors that the checkpoint does not hold: {missing[:10]}"
        )
    unflatten_experts(plain.graph, tensors)
    plain.graph.lint()
    return Network(
        graph=plain.graph,
        tensors=MappingProxyType(tensors),
        parameter_names=parameter_names,
        inputs=tuple(plain.inputs),
        outputs=tuple(plain.outputs),
        architecture=architecture,
        architecture_args=MappingProxyType(args),
    )


class _PlainForm:
    """Copies an exported graph: flat tuple of outputs, no pytree code, no scopes, no unused reads, our meta only."""

    def __init__(self, exported: GraphModule, input_names: Sequence[str]) -> None:
        self.graph = Graph()
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self._input_names = iter(input_names)
        # A call in a scope that returns several values is written out as those values.
        self._copies: dict[Node, Node | tuple[Node, ...]] = {}
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                self._copies[node] = self._input(node)
            elif node.op == "output":
                self._output(node, _leaf_names(exported.graph))
            else:
                self._copy(node, exported)

    def _input(self, node: Node) -> Node:
        name = next(self._input_names)
        copy = self.graph.placeholder(name)
        copy.meta = {"path": "", "value": _at_batch_one(node.meta["val"])}
        self.inputs.append(TensorSpec(name, copy.meta["value"].shape[1:], copy.meta["value"].dtype))
        return copy

    def _output(self, node: Node, names: Sequence[str]) -> None:
        leaves = torch.utils._pytree.tree_leaves(node.args[0])
        found = [(self._copies[leaf], name) for leaf, name in zip(leaves, names, strict=True) if isinstance(leaf, Node)]
        found = [(copy, name) for copy, name in found if isinstance(copy.meta["value"], TensorMeta)]
        if not found:
            raise EngineError("invalid_model", "The network returns no tensor.")
        self.graph.output(tuple(copy for copy, _ in found)).meta = {"path": ""}
        for index, (copy, name) in enumerate(found):
            meta = copy.meta["value"]
            default = "output" if len(found) == 1 else f"output_{index}"
            self.outputs.append(TensorSpec(name or default, meta.shape[1:], meta.dtype))

    def _copy(self, node: Node, owner: GraphModule) -> None:
        if not node.users and not _writes(node):
            return
        scope = getattr(node.target, "_name", None) or getattr(node.target, "__name__", "")
        if node.op == "get_attr" and isinstance(_attribute(owner, node.target), GraphModule):
            return
        if node.op == "call_function" and scope in (_GRADIENT_SCOPE, _AUTOCAST_SCOPE):
            self._write_out(node, owner, scope)
        elif node.op == "call_function" and isinstance(self._scope_results(node), tuple):
            self._copies[node] = self._scope_results(node)[node.args[1]]
        elif node.op == "call_function" and _converts_nothing(node):
            self._copies[node] = self._copies[node.args[0]]
        elif node.op in ("get_attr", "call_function") and not isinstance(node.target, torch._ops.HigherOrderOperator):
            copy = self.graph.node_copy(node, self._copies.__getitem__)
            copy.meta = {"path": _module_path(node), "value": _at_batch_one(node.meta.get("val"))}
            self._copies[node] = copy
        else:
            raise EngineError(
                "invalid_model",
                f"The forward pass has control flow that depends on data ({node.op} {node.target} in "
                f"{_module_path(node) or 'the top module'}); a network must compute the same operators for every input.",
            )

    def _write_out(self, node: Node, owner: GraphModule, scope: str) -> None:
        """Copy the body of a scope in place of its call."""
        if scope == _AUTOCAST_SCOPE and node.args[2] and node.args[0] == "cpu":
            raise EngineError(
                "invalid_model",
                f"{_module_path(node) or 'The network'} computes under torch.autocast; export it in float32, with autocast off.",
            )
        position = 1 if scope == _GRADIENT_SCOPE else 4
        body = _attribute(owner, node.args[position].target)
        arguments = iter(node.args[position + 1 :])
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                self._copies[inner] = self._copies[next(arguments)]
            elif inner.op == "output":
                self._copies[node] = tuple(self._copies[result] for result in inner.args[0])
            else:
                self._copy(inner, body)

    def _scope_results(self, node: Node) -> Any:
        """What an item of a scope's results is taken from, or None."""
        if getattr(node.target, "__name__", "") != "getitem" or not isinstance(node.args[0], Node):
            return None
        return self._copies.get(node.args[0])


def _attribute(owner: GraphModule, target: str) -> Any:
    for part in target.split("."):
        owner = getattr(owner, part)
    return owner


def _leaf_names(graph: Graph) -> list[str]:
    """Per leaf of what the model returns: its key in a (nested) dictionary, "" where it has none."""
    spec = graph._codegen.pytree_info.out_spec
    tree = torch.utils._pytree.tree_unflatten([0] * spec.num_leaves, spec)
    names = []
    for path, _ in torch.utils._pytree.tree_flatten_with_path(tree)[0]:
        keys = [str(key.key) for key in path if isinstance(key, torch.utils._pytree.MappingKey)]
        names.append("_".join([*keys, *(str(key.idx) for key in path if keys and hasattr(key, "idx"))]))
    return names


def _converts_nothing(node: Node) -> bool:
    """`x.float()` of what is float32 already. A copy that is asked for stays."""
    if node.target is not aten.to.dtype or len(node.args) > 3 or node.kwargs:
        return False
    source = node.args[0]
    return node.args[2:] in ((), (False,)) and source.meta["val"].dtype == node.meta["val"].dtype


def _writes(node: Node) -> bool:
    """Whether a call changes one of its arguments (`y[:, 0] = 0`), so that it matters though nobody reads its
    result."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def unflatten_experts(graph: Graph, tensors: dict[str, Tensor]) -> None:
    """Give flat expert weights the axes of the convolution that reads them; changes `graph` and `tensors`."""
    for node in list(graph.nodes):
        if node.target is not aten.matmul.default or len(node.users) != 1:
            continue
        routing, weight = node.args
        (view,) = node.users
        if view.target not in (aten.view.default, aten.reshape.default) or weight.op != "get_attr":
            continue
        reads = [one for one in graph.nodes if one.op == "get_attr" and one.target == weight.target]
        shape = view.meta["value"].shape
        feeds_convolutions = all(user.target in _CONVOLUTIONS and user.args[1] is view for user in view.users)
        if len(reads) != 1 or len(weight.users) != 1 or not feeds_convolutions:
            continue
        if len(routing.meta["value"].shape) != 2 or len(weight.meta["value"].shape) != 2 or routing is weight:
            continue
        experts = weight.meta["value"].shape[0]
        tensors[weight.target] = tensors[weight.target].reshape(experts, *shape)
        weight.meta["value"] = TensorMeta((experts, *shape), weight.meta["value"].dtype)
        axes = string.ascii_lowercase[2 : 2 + len(shape)]
        node.target = aten.einsum.default
        node.args = (f"ab,b{axes}->a{axes}", [routing, weight])
        node.meta["value"] = TensorMeta((1, *shape), node.meta["value"].dtype)


def _module_path(node: Node) -> str:
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
    """The message of an error; where it has none (a bare assertion), the line of code that raised it."""
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0][:300]
    torch_folder = str(Path(torch.__file__).parent)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(torch_folder)]
    return f"{type(error).__name__} at `{frames[-1].line}`"[:300]
