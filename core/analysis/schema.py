"""Arguments of ATen calls by their schema names, so that no handler counts positions.

relu = bind(node)            {"self": <Node x>}
bind(conv)["groups"]         1, also where the call leaves it to the default
set_argument(view, "size", [batch, 12, 8, 8])
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node


def operator_name(target: Callable[..., Any]) -> str:
    """Base name without overload: `aten.add_.Tensor` → "add_", `operator.getitem` → "getitem"."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return getattr(target, "__name__", str(target))


def is_aten(target: Callable[..., Any]) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"


def bind(node: Node) -> dict[str, Any]:
    """Every argument of the call by name, defaults included. For `operator.getitem`: "self" and "index"."""
    if node.target is operator.getitem:
        return {"self": node.args[0], "index": node.args[1]}
    schema = node.target._schema.arguments
    bound = {}
    for position, argument in enumerate(schema):
        if position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def set_argument(node: Node, name: str, value: Any) -> None:
    """Replace one argument of an ATen call by its schema name."""
    bound = bind(node)
    if name not in bound:
        raise KeyError(f"{node.target} has no argument {name!r}")
    bound[name] = value
    schema = node.target._schema.arguments
    positional = [argument for argument in schema if not argument.kwarg_only]
    given = [index for index, argument in enumerate(positional) if index < len(node.args) or argument.name == name]
    node.args = tuple(bound[argument.name] for argument in positional[: max(given, default=-1) + 1])
    written = {argument.name for argument in positional[: len(node.args)]}
    kwargs = {key: item for key, item in node.kwargs.items() if key not in written}
    if name not in written:
        kwargs[name] = value
    node.kwargs = kwargs
