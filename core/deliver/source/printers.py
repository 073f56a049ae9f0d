"""Printers: how one kind of operator is written as Python.

A printer gives None for a call that it cannot say completely: an argument that it does not write must have its default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import Node

from core.deliver.source.layout import Code, call

Value = Callable[[Any], Code]
Printer = Callable[[Node, Mapping[str, Any], Value], Code | None]

# Sizes of a window or an image: [2, 2] is written 2.
_SPATIAL = {"kernel_size", "stride", "padding", "dilation", "output_size", "output_padding"}


def values(arguments: Mapping[str, Any], value: Value) -> dict[str, Code]:
    return {name: value(item) for name, item in arguments.items()}


def _defaults(node: Node) -> dict[str, Any]:
    return {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}


def _only(node: Node, bound: Mapping[str, Any], written: Sequence[str]) -> bool:
    """Whether every argument beside the written ones has its default."""
    defaults = _defaults(node)
    return all(name in written or (name in defaults and bound[name] == defaults[name]) for name in bound)


def _written(name: str, item: Any, value: Value) -> Code:
    sizes = isinstance(item, (list, tuple)) and len(set(item)) == 1
    if sizes and (name in _SPATIAL or (name == "dim" and len(item) == 1)):
        item = item[0]
    elif isinstance(item, list) and not any(isinstance(part, Node) and _is_tensor(part) for part in item):
        item = tuple(item)
    return value(item)


def _is_tensor(node: Node) -> bool:
    return hasattr(node.meta.get("value"), "shape")


def function(callee: str, positional: str, keywords: str = "", **fixed: str) -> Printer:
    """`callee(positional…, keyword=…)`, keywords only where they differ from the operator's defaults.

    Both are argument names of the operator's schema, parted by spaces; `fixed` is written as it stands.
    """
    names, optional = positional.split(), keywords.split()

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if not set(names) <= bound.keys() or not _only(node, bound, [*names, *optional]):
            return None
        defaults = _defaults(node)
        given = {
            name: _written(name, bound[name], value)
            for name in optional
            if name in bound and (name not in defaults or bound[name] != defaults[name])
        }
        return call(callee, [_written(name, bound[name], value) for name in names], {**given, **fixed})

    return printer


def method(name: str, positional: str = "", keywords: str = "") -> Printer:
    """`x.name(…)`, where x is the operator's `self`."""
    as_function = function(name, positional, keywords)

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        rest = {key: item for key, item in bound.items() if key != "self"}
        code = as_function(node, rest, value)
        return None if code is None else call(f"{value(bound['self'])}.{name}", code.items)

    return printer


def sized(name: str, sizes: str) -> Printer:
    """`x.view(2, 3)`: the sizes are written without brackets."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if not _only(node, bound, ["self", sizes]):
            return None
        return call(f"{value(bound['self'])}.{name}", [value(size) for size in bound[sizes]])

    return printer


def infix(symbol: str, *, swapped: bool = False) -> Printer:
    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if not _only(node, bound, ["self", "other"]):
            return None
        left, right = value(bound["self"]), value(bound["other"])
        return binary(right, symbol, left) if swapped else binary(left, symbol, right)

    return printer


def binary(left: Code, symbol: str, right: Code) -> str:
    return f"{left} {symbol} {right}"


def power(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    base, exponent = bound["self"], value(bound["exponent"])
    return f"{value(base)}**{exponent}" if isinstance(base, Node) or base >= 0 else f"({value(base)})**{exponent}"


def negative(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    return f"-{value(bound['self'])}"


def inverted(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    return f"~{value(bound['self'])}"


def new(name: str, keywords: str = "") -> Printer:
    """`x.new_zeros((7, 7))`; that its memory is not pinned goes without saying."""
    as_method = method(name, "size", keywords)

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        return as_method(node, {**bound, "pin_memory": bound["pin_memory"] or None}, value)

    return printer


def created(callee: str, positional: str) -> Printer:
    """A new tensor, on the device that the network's input is on: the one of the export says nothing."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        names = " ".join(name for name in positional.split() if name in bound)
        device = next(one for one in node.graph.nodes if one.op == "placeholder")
        as_function = function(callee, names, "dtype", device=f"{value(device)}.device")
        return as_function(node, {**bound, "device": None, "pin_memory": bound["pin_memory"] or None}, value)

    return printer


def first_of(*printers: Printer) -> Printer:
    """The first that can say the call."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        return next((code for one in printers if (code := one(node, bound, value)) is not None), None)

    return printer


def select(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    meta = bound["self"].meta.get("value")
    if not hasattr(meta, "shape"):
        return None
    before = bound["dim"] % len(meta.shape)
    return f"{value(bound['self'])}[{', '.join([':'] * before + [str(value(bound['index']))])}]"


def index(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    indices = [":" if index is None else str(value(index)) for index in bound["indices"]]
    return f"{value(bound['self'])}[{', '.join(indices)}]"


def interpolate(mode: str) -> Printer:
    """The operators that `F.interpolate` calls take either a size or scale factors."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if node.target._overloadname != "vec":
            return None
        size, scales = bound["output_size"], bound["scale_factors"]
        keywords: dict[str, Code] = {}
        if size is not None:
            keywords["size"] = value(tuple(size))
        if scales is not None:
            keywords["scale_factor"] = value(scales[0] if len(set(scales)) == 1 else tuple(scales))
        if mode != "nearest":
            keywords["mode"] = json.dumps(mode)
        if bound.get("align_corners"):
            keywords["align_corners"] = "True"
        return call("F.interpolate", [value(bound["input"])], keywords)

    return printer


def size(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    return f"{value(bound['self'])}.size({bound['dim']})" if "dim" in bound else None


def dropout(callee: str) -> Printer:
    """Exported in eval mode; written so that training mode drops again."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if bound["train"]:
            return None
        in_place = "self" in bound
        keywords = {"p": value(bound["p"]), "training": "self.training", **({"inplace": "True"} if in_place else {})}
        return call(callee, [value(bound["self" if in_place else "input"])], keywords)

    return printer


def channel_dropout(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    rank = len(node.meta["value"].shape) - 2
    return dropout(f"F.dropout{rank}d")(node, bound, value) if rank in (1, 2, 3) else None


def batch_norm(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    statistics = bound["running_mean"], bound["running_var"]
    if None in statistics and not bound["training"]:
        return None
    affine = {name: value(bound[name]) for name in ("weight", "bias") if bound[name] is not None}
    keywords = {
        **affine,
        "training": "True" if bound["training"] else "self.training",
        "momentum": value(bound["momentum"]),
        "eps": value(bound["eps"]),
    }
    return call("F.batch_norm", [value(bound["input"]), *map(value, statistics)], keywords)
