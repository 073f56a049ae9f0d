"""One call of a program: its arguments by the operator's schema, and its result at batch 1 and at batch MANY."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

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
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError, ArithmeticError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise invalid(f"{what} of the .pt2 file cannot be computed: {reason[:200]}.") from error


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
