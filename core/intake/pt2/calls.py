"""One call of a program: its arguments by the operator's schema, and its result at batch 1 and at batch MANY."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from core.analysis.schema import operator_name
from core.errors import first_line
from core.intake.pt2.fields import LARGEST
from core.intake.refusals import invalid


@dataclass(frozen=True)
class Made:
    """A value: its node (None for a number that is a literal), and what it is at batch 1 and at batch MANY."""

    node: Node | None
    one: Any
    many: Any

    @property
    def argument(self) -> Any:
        return self.one if self.node is None else self.node


def bound(target: torch._ops.OpOverload, given: Mapping[str, Any], what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments in the order of the operator's schema, by name from the first gap on."""
    schema = target._schema.arguments
    unknown = given.keys() - {one.name for one in schema}
    if unknown:
        raise invalid(f"{what} of the .pt2 file has an argument {sorted(unknown)[0][:40]!r} that the operator has not.")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for position, one in enumerate(schema):
        if one.name not in given:
            continue
        if one.kwarg_only or len(args) < position:
            kwargs[one.name] = given[one.name]
        else:
            args.append(given[one.name])
    return tuple(args), kwargs


def evaluated(target: Callable[..., Any], args: Any, kwargs: Any, what: str) -> Any:
    if isinstance(target, torch._ops.OpOverload) and any(one.name == "device" for one in target._schema.arguments):
        kwargs = {**kwargs, "device": torch.device("meta")} if not _has_device(args) else kwargs
    try:
        with torch.no_grad():
            return target(*args, **kwargs)
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, AssertionError, AttributeError) as error:
        raise invalid(f"{what} of the .pt2 file cannot be computed: {first_line(error)}.") from error


def require_numbers(items: Sequence[Any], what: str) -> None:
    """Arithmetic is of sizes: `"%9999999999d" % 1` is none, and squares of squares fill any memory.

    Raises EngineError("invalid_model").
    """
    for item in items:
        for value in (item.one, item.many) if isinstance(item, Made) else (item,):
            if not isinstance(value, (bool, int, float)) or (isinstance(value, int) and abs(value) > LARGEST):
                raise invalid(f"{what} of the .pt2 file computes with what is no size.")


def require_few(target: torch._ops.OpOverload, args: Any, kwargs: Any, results: int, what: str) -> None:
    """A call may not take a tensor into more pieces than the program names: a short file could ask for millions.

    args, kwargs: at one batch. Raises EngineError("invalid_model").
    """
    given = {one.name: value for one, value in zip(target._schema.arguments, args, strict=False)} | kwargs
    operand, axis = given.get("self"), given.get("dim", 0)
    if not isinstance(operand, Tensor) or not operand.ndim or type(axis) is not int:
        return
    size, width, chunks = operand.shape[axis % operand.ndim], given.get("split_size"), given.get("chunks")
    pieces = given.get("sections", 0)
    if operator_name(target) == "unbind":
        pieces = size
    elif type(width) is int and width > 0:
        pieces = -(-size // width)
    elif type(chunks) is int:
        pieces = min(chunks, size)
    if type(pieces) is int and pieces > results:
        raise invalid(f"{what} of the .pt2 file has {results} results and computes {pieces}.")


def _has_device(args: Any) -> bool:
    return any(isinstance(one, torch.device) for one in args)


def at_batch(item: Any, which: str) -> Any:
    """Arguments at batch 1 ("one") or MANY ("many"), devices as meta."""
    if isinstance(item, Made):
        return getattr(item, which)
    if isinstance(item, (list, tuple)):
        return type(item)(at_batch(one, which) for one in item)
    if isinstance(item, dict):
        return {key: at_batch(one, which) for key, one in item.items()}
    return torch.device("meta") if isinstance(item, torch.device) else item


def in_graph(item: Any) -> Any:
    if isinstance(item, Made):
        return item.argument
    if isinstance(item, (list, tuple)):
        return type(item)(in_graph(one) for one in item)
    return {key: in_graph(one) for key, one in item.items()} if isinstance(item, dict) else item


def leaves(items: Sequence[Any]) -> list[Any]:
    return [leaf for item in items for leaf in (leaves(item) if isinstance(item, (list, tuple)) else [item])]


def follows_batch(made: Made) -> bool:
    if isinstance(made.one, Tensor):
        return made.one.shape != made.many.shape
    return made.one != made.many
