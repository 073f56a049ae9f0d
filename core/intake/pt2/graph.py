"""Builds the network's graph out of a program's nodes, computing the shapes of every value itself.

Nothing that the file says about shapes is believed: each call is run on meta tensors, which have shapes and no memory, at
batch 1 and at batch `MANY`. A number that is the same for both becomes a literal; one that follows the batch stays a node.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from core.errors import EngineError
from core.intake.pt2.archive import SCALAR_TYPES
from core.intake.pt2.batch import MANY, readings
from core.intake.pt2.calls import (
    Made,
    at_batch,
    bound,
    evaluated,
    follows_batch,
    in_graph,
    leaves,
    require_few,
    require_numbers,
)
from core.intake.pt2.fields import number, take, union, whole
from core.intake.pt2.operators import AUTOCAST, SET_GRADIENT, is_arithmetic, is_assertion, resolve
from core.intake.refusals import invalid, unsafe, unsupported
from core.network import TensorMeta

aten = torch.ops.aten
MAX_ELEMENTS = 2**28
_LAYOUTS = {7: torch.strided}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_PATH = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
_NOTHING_MADE = "_empty_nn_module_stack"


class GraphReader:
    """Values by the names that the program gives them.

    fixed: the number of images that the program was exported for, None where it takes any. float_type: the element type of
    its inputs, which becomes float32 together with its weights.
    """

    def __init__(self, *, fixed: int | None, float_type: torch.dtype) -> None:
        self.graph = Graph()
        self.values: dict[str, Made] = {}
        self._fixed = fixed
        self._float_type = float_type
        self._batch: dict[int, Made] = {}
        self._first_input: Made | None = None

    def input(self, name: str, identifier: str, shape: Sequence[int]) -> None:
        """A float32 input of `shape` (without the batch)."""
        one, many = (torch.empty((batch, *shape), device="meta") for batch in (1, MANY))
        made = Made(self._described(self.graph.placeholder(identifier), one, ""), one, many)
        self._first_input = self._first_input or made
        self.values[name] = made

    def stored(self, name: str, qualified: str, tensor: Tensor) -> None:
        """A tensor of the network, read under its qualified name."""
        meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        self.values[name] = Made(self._described(self.graph.get_attr(qualified), meta, ""), meta, meta)

    def nodes(self, graph: Mapping[str, Any]) -> None:
        """The calls of a graph, in order; scopes are written out in place."""
        recorded = take(graph, "tensor_values", dict, "The graph")
        for node in take(graph, "nodes", list, "The graph"):
            if not isinstance(node, dict):
                raise invalid("The graph of the .pt2 file has a node that is no object; the file is damaged.")
            target = take(node, "target", str, "A node")
            inputs = take(node, "inputs", list, f"A call of {target[:80]}")
            if is_assertion(target):
                continue
            if target in (SET_GRADIENT, AUTOCAST):
                self._scope(target, node, inputs)
            else:
                self._call(resolve(target), node, inputs, recorded)

    def _scope(self, target: str, node: Mapping[str, Any], inputs: list[Any]) -> None:
        """Its depth is limited where operators are (`require_known`)."""
        what = f"A call of {target}"
        position = 1 if target == SET_GRADIENT else 4
        given = [union(take(one, "arg", dict, what), what) for one in inputs if isinstance(one, dict)]
        if len(given) <= position or given[position][0] != "as_graph":
            raise invalid(f"{what} in the .pt2 file has no graph; the file is damaged.")
        if target == AUTOCAST and given[2] != ("as_bool", False):
            device = str(given[0][1])[:20]
            raise unsupported(
                f"The network in the .pt2 file computes under torch.autocast({device!r}), which on that device rounds to "
                "half precision; here it would compute something else. Export it in float32, with autocast off."
            )
        body = take(given[position][1], "graph", dict, what)
        outside = dict(self.values)
        inner = [_name(one, what) for one in take(body, "inputs", list, what)]
        if len(inner) != len(given) - position - 1:
            raise invalid(f"{what} in the .pt2 file gives its graph other inputs than that has; the file is damaged.")
        for name, (kind, value) in zip(inner, given[position + 1 :], strict=True):
            self.values[name] = outside[self._known(kind, value, what, outside)]
        self.nodes(body)
        results = [self.values[self._known(*union(one, what), what)] for one in take(body, "outputs", list, what)]
        self.values = outside
        self._keep(take(node, "outputs", list, what), results, what)

    def _call(
        self, target: Callable[..., Any], node: Mapping[str, Any], inputs: list[Any], recorded: Mapping[str, Any]
    ) -> None:
        what = f"Node {str(node.get('name') or node['target'])[:80]!r} ({node['target'][:80]})"
        given: dict[str, Any] = {}
        for one in inputs:
            if not isinstance(one, dict):
                raise invalid(f"{what} of the .pt2 file has an argument that is no object; the file is damaged.")
            given[take(one, "name", str, what)] = self._argument(*union(one.get("arg"), what), what)
        path, outputs = _path(node), take(node, "outputs", list, what)
        if is_arithmetic(target):
            results = self._arithmetic(target, list(given.values()), what)
        else:
            _require_inference(target, given, what)
            results = self._operator(target, given, path, what, len(_output_names(outputs, what)))
        self._keep(outputs, results, what, recorded)

    def _arithmetic(self, target: Callable[..., Any], given: list[Any], what: str) -> list[Made]:
        require_numbers(given, what)
        one, many = (
            evaluated(target, [at_batch(item, which) for item in given], {}, what) for which in ("one", "many")
        )
        require_numbers([one, many], what)
        # Of a number that follows the batch only its node is right for all: 1 // 4 and 3 // 4 are both 0, and 8 // 4 is not.
        if one == many and not any(isinstance(item, Made) and item.node is not None for item in given):
            return [Made(None, one, many)]
        made = self.graph.call_function(target, tuple(in_graph(item) for item in given))
        made.meta = {"path": "", "value": one}
        return [Made(made, one, many)]

    def _operator(
        self, target: torch._ops.OpOverload, given: dict[str, Any], path: str, what: str, results: int
    ) -> list[Made]:
        args, kwargs = bound(target, given, what)
        choices = [("", 0, 0)]
        if self._fixed is not None:
            follows = any(isinstance(item, Made) and follows_batch(item) for item in leaves([*args, *kwargs.values()]))
            choices = list(readings(target, given, self._fixed, follows=follows))
        reason: EngineError | None = None
        for name, position, share in choices:
            if name:
                sizes = list(given[name])
                sizes[position] = self._images(share)
                args, kwargs = bound(target, {**given, name: sizes}, what)
            elif choices[0][0]:
                args, kwargs = bound(target, given, what)
            try:
                parts = [tuple(at_batch(part, which) for part in (args, kwargs)) for which in ("one", "many")]
                for part in parts:
                    require_few(target, *part, results, what)
                one, many = (evaluated(target, *part, what) for part in parts)
            except EngineError as error:
                reason = reason or error
                continue
            return self._results(target, args, kwargs, one, many, path, what)
        raise reason

    def _results(
        self, target: torch._ops.OpOverload, args: Any, kwargs: Any, one: Any, many: Any, path: str, what: str
    ) -> list[Made]:
        if isinstance(one, (int, float)) and one == many:
            return [Made(None, one, many)]
        node = self.graph.call_function(target, in_graph(args), in_graph(kwargs))
        if isinstance(one, Tensor):
            return [Made(self._described(node, one, path, what), one, many)]
        if isinstance(one, (int, float)):
            node.meta = {"path": "", "value": one}
            return [Made(node, one, many)]
        node.meta = {"path": path, "value": tuple(TensorMeta(tuple(item.shape), item.dtype) for item in one)}
        items = []
        for index, pair in enumerate(zip(one, many, strict=True)):
            item = self.graph.call_function(operator.getitem, (node, index))
            items.append(Made(self._described(item, pair[0], path, what), *pair))
        return items

    def _images(self, share: int) -> Made:
        """`share` times the number of images."""
        if share not in self._batch:
            if share == 1:
                node = self.graph.call_function(aten.sym_size.int, (self._first_input.node, 0))
            else:
                node = self.graph.call_function(operator.mul, (self._images(1).node, share))
            node.meta = {"path": "", "value": share}
            self._batch[share] = Made(node, share, share * MANY)
        return self._batch[share]

    def _described(self, node: Node, value: Tensor, path: str, what: str = "") -> Node:
        if value.numel() > MAX_ELEMENTS:
            raise unsafe(
                f"{what or 'A tensor'} of the .pt2 file has {value.numel()} elements, more than {MAX_ELEMENTS}."
            )
        node.meta = {"path": path, "value": TensorMeta(tuple(value.shape), value.dtype)}
        return node

    def _keep(
        self, outputs: list[Any], results: list[Made], what: str, recorded: Mapping[str, Any] | None = None
    ) -> None:
        """Results under the names that the program gives them."""
        names = _output_names(outputs, what)
        if len(names) != len(results):
            raise invalid(f"{what} of the .pt2 file has {len(names)} results and computes {len(results)}.")
        for name, made in zip(names, results, strict=True):
            if name is None:
                continue
            self.values[name] = made
            if recorded is not None and isinstance(made.one, Tensor) and name in recorded:
                self._require_recorded(made, recorded[name], what)

    def _require_recorded(self, made: Made, meta: object, what: str) -> None:
        sizes = take(meta, "sizes", list, what)
        plain = [size.get("as_int") if isinstance(size, dict) else None for size in sizes]
        same = len(plain) == made.one.ndim and all(
            said is None or said == one or one != many
            for said, one, many in zip(plain, made.one.shape, made.many.shape, strict=True)
        )
        if not same:
            raise invalid(
                f"{what} computes the shape {list(made.one.shape)} for one image, and the .pt2 file says {plain}. It was "
                "exported for other inputs, or is damaged."
            )

    def _argument(self, kind: str, value: Any, what: str) -> Any:
        """What an argument of a call stands for: a literal, a `Made`, or a list of them."""
        match kind:
            case "as_none":
                return None
            case "as_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool" | "as_optional_tensor":
                return self._item(kind, value, what)
            case "as_tensors" | "as_sym_ints" | "as_sym_floats" | "as_sym_bools" | "as_optional_tensors":
                return [self._item(kind[:-1], one, what) for one in _listed(value, what)]
            case "as_int":
                return whole(value, what)
            case "as_ints":
                return [whole(one, what) for one in _listed(value, what)]
            case "as_float":
                return number(value, what)
            case "as_floats":
                return [number(one, what) for one in _listed(value, what)]
            case "as_bool":
                return bool(value)
            case "as_bools":
                return [bool(one) for one in _listed(value, what)]
            case "as_string":
                return str(value)
            case "as_scalar_type":
                dtype = _coded(SCALAR_TYPES, value, "element type", what)
                return torch.float32 if dtype is self._float_type else dtype
            case "as_memory_format":
                return _coded(_MEMORY_FORMATS, value, "memory format", what)
            case "as_layout":
                return _coded(_LAYOUTS, value, "layout", what)
            case "as_device":
                return torch.device("cpu")
        raise EngineError(
            "unsupported_format", f"{what} of the .pt2 file has an argument of kind {kind[:40]!r}, which is not read."
        )

    def _item(self, kind: str, value: Any, what: str) -> Any:
        if kind == "as_tensor":
            return self.values[self._known(kind, value, what)]
        tag, inner = union(value, what)
        if tag == "as_none":
            return None
        if tag == "as_tensor":
            return self.values[self._known(tag, inner, what)]
        if tag == "as_name":
            return self.values[self._known(kind, value, what)]
        if tag == "as_float":
            return number(inner, what)
        if tag in ("as_int", "as_bool"):
            return bool(inner) if tag == "as_bool" else whole(inner, what)
        raise invalid(f"{what} of the .pt2 file has an argument of unknown kind {tag[:40]!r}.")

    def _known(self, kind: str, value: Any, what: str, values: Mapping[str, Made] | None = None) -> str:
        name = _name({kind: value}, what)
        if name not in (self.values if values is None else values):
            raise invalid(f"{what} of the .pt2 file reads {name[:80]!r} before anything computes it.")
        return name


def _name(value: object, what: str) -> str:
    kind, inner = union(value, what)
    field = "name" if kind == "as_tensor" else "as_name"
    if kind not in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool") or not isinstance(inner, dict):
        raise invalid(f"{what} of the .pt2 file has {kind[:40]!r} where the name of a value belongs.")
    return take(inner, field, str, what)


def _output_names(outputs: list[Any], what: str) -> list[str | None]:
    """A list of tensors is one output of several names; None is an output that nobody reads."""
    names: list[str | None] = []
    for output in outputs:
        kind, value = union(output, what)
        if kind == "as_tensors" and isinstance(value, list):
            names += [take(one, "name", str, what) for one in value]
        else:
            names.append(None if kind == "as_none" else _name(output, what))
    return names


def _require_inference(target: torch._ops.OpOverload, given: Mapping[str, Any], what: str) -> None:
    """Raises EngineError("invalid_model") for a program of a network in training mode."""
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    # A norm without stored statistics standardises weights, in training and in use.
    trains = "dropout" in name or (name == "batch_norm" and given.get("running_mean") is not None)
    updates = name == "instance_norm" and given.get("use_input_stats") is True and given.get("running_mean") is not None
    written = [
        given.get(one.name)
        for one in target._schema.arguments
        if one.alias_info is not None and one.alias_info.is_write and isinstance(given.get(one.name), Made)
    ]
    stored = next((made.node.target for made in written if made.node is not None and made.node.op == "get_attr"), None)
    active = updates or given.get("dropout_p", 0.0) != 0.0
    if stored is not None or active or (trains and (given.get("training") is True or given.get("train") is True)):
        does = f"writes into {stored!r}" if stored is not None else "is active"
        raise invalid(
            f"{what} of the .pt2 file {does}: the network was exported in training mode. Call model.eval() before "
            "torch.export.export, and save it again."
        )


def _listed(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"{what} of the .pt2 file has no list where one belongs.")
    return value


def _coded(table: Mapping[int, Any], value: object, kind: str, what: str) -> Any:
    if type(value) is not int or value not in table:
        raise invalid(f"{what} of the .pt2 file has the unknown {kind} {str(value)[:20]!r}.")
    return table[value]


def _path(node: Mapping[str, Any]) -> str:
    """The module that made a node: the last of `name,path,class;name,path,class`."""
    metadata = node.get("metadata")
    stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
    paths = [one.split(",")[1] for one in str(stack or "").split(";") if one.count(",") >= 2]
    paths = [one for one in paths if not one.startswith(_NOTHING_MADE)]
    path = paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""
    return path if len(path) <= 256 and _PATH.fullmatch(path) else ""
