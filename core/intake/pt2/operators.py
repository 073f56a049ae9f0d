"""The operators that a program may call: ATen overloads that compute tensors from tensors, and arithmetic of sizes.

Everything else is refused by name, all of it at once: an overload may also read a file (`aten.from_file`) or the state of
the machine. The list is that of the operators the engine knows, and a few that only move or make numbers.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from core.analysis.handlers import HANDLERS
from core.errors import EngineError
from core.intake.pt2.fields import take, union
from core.intake.refusals import unsafe

SET_GRADIENT = "torch.ops.higher_order.wrap_with_set_grad_enabled"
AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"
MAX_SCOPES = 20
MAX_NODES = 100_000
_ALSO = frozenset(
    {
        "arange",
        "arccos",
        "arcsin",
        "arctan",
        "count_nonzero",
        "cross",
        "diagonal",
        "divide",
        "gather",
        "lift_fresh",
        "linalg_norm",
        "linspace",
        "logaddexp",
        "meshgrid",
        "multiply",
        "narrow",
        "outer",
        "scalar_tensor",
        "sort",
        "subtract",
        "topk",
        "tril",
        "triu",
    }
)
_NAMES = (frozenset(HANDLERS) | _ALSO) - {"getitem"}
# These say what must hold while tracing and compute nothing.
_ASSERTIONS = frozenset(
    [
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    ]
)
_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]{1,60})\.([A-Za-z0-9_]{1,60})", re.ASCII)
_OPERATIONS = (
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "eq",
    "ne",
    "le",
    "lt",
    "ge",
    "gt",
    "and_",
    "or_",
)
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in _OPERATIONS},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}


def resolve(target: str) -> Callable[..., Any] | None:
    """What a program calls by this name; None where that is not allowed."""
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    match = _ATEN.fullmatch(target)
    if match is None:
        return None
    name, overload = match.groups()
    plain = name if name.startswith("_") else name.removesuffix("_")
    if plain not in _NAMES:
        return None
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload) or any(one.is_out for one in found._schema.arguments):
        return None
    # `aten.mul.left_t` repeats lists and `aten.split.str` cuts texts.
    makes = {str(one.type) for one in found._schema.returns}
    return found if plain == "sym_size" or (makes and makes <= {"Tensor", "List[Tensor]"}) else None


def is_arithmetic(target: Callable[..., Any]) -> bool:
    return not isinstance(target, torch._ops.OpOverload)


def is_assertion(target: str) -> bool:
    match = _ATEN.fullmatch(target)
    return match is not None and match.group(1) in _ASSERTIONS


def require_known(graph: Mapping[str, Any]) -> None:
    """Raises EngineError: unsupported_format naming every operator that is not read, with the number of its calls;
    unsafe_model for more nodes, or scopes within scopes, than any network has.
    """
    counts: dict[str, int] = {}
    for number, node in enumerate(_nodes(graph), start=1):
        if number > MAX_NODES:
            raise unsafe(f"The program in the .pt2 file has more than {MAX_NODES:,} nodes; at most so many are read.")
        target = take(node, "target", str, "A node")
        if target not in (SET_GRADIENT, AUTOCAST) and not is_assertion(target) and resolve(target) is None:
            counts[target[:120]] = counts.get(target[:120], 0) + 1
    if not counts:
        return
    listed = ", ".join(f"{name} ({count}×)" for name, count in list(counts.items())[:30])
    rest = f" and {len(counts) - 30} more" if len(counts) > 30 else ""
    raise EngineError(
        "unsupported_format",
        f"The .pt2 file calls {len(counts)} operator(s) that are not read: {listed}{rest}. Export the network itself in "
        "float32, without custom operators, control flow or quantisation.",
        details={"operators": {"count": len(counts), "calls": dict(list(counts.items())[:200])}},
    )


def _nodes(graph: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The nodes of a graph and of those inside it. Raises EngineError("unsafe_model") where they nest too deeply."""
    if depth > MAX_SCOPES:
        raise unsafe(f"The .pt2 file has scopes inside scopes, more than {MAX_SCOPES} deep.")
    for node in take(graph, "nodes", list, "The graph"):
        if not isinstance(node, dict):
            continue
        yield node
        for given in take(node, "inputs", list, "A node"):
            if isinstance(given, dict) and isinstance(given.get("arg"), dict) and "as_graph" in given["arg"]:
                _, inner = union(given["arg"], "An argument")
                yield from _nodes(take(inner, "graph", dict, "A graph inside"), depth + 1)
