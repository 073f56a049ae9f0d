"""Reductions: the reduced axes need all their positions, or are taken over the surviving ones; the others pass."""

from __future__ import annotations

import operator

from core.analysis.context import Call, Read, Recorder
from core.analysis.handlers.elementwise import elementwise
from core.analysis.values import Value

# What these give for fewer positions is the same statistic of fewer positions.
_OVER_SURVIVORS = [
    "mean",
    "sum",
    "nansum",
    "prod",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "logsumexp",
    "linalg_vector_norm",
    "norm",
]
# Positions and orders: they would change their meaning.
_OVER_ALL = ["argmax", "argmin", "any", "all", "median", "nanmedian", "mode", "aminmax"]


def reduction(recorder: Recorder, call: Call) -> Value | tuple[Value, ...]:
    x = call["self"]
    if len(call.tensors) > 1:
        # max(a, b) and min(a, b) are element-wise.
        return elementwise(recorder, call)
    dims = call.get("dim")
    if dims is None or dims == []:
        axes = set(range(x.rank))
    else:
        axes = {x.axis(axis) for axis in (dims if isinstance(dims, (list, tuple)) else [dims])}
    reason = f"{call.operator} runs over this axis"
    if call.operator in _OVER_ALL or (call.operator in ("max", "min") and _reads_positions(call)):
        recorder.freeze_axes(x, sorted(axes), reason)
    else:
        recorder.run_over([Read("self", axis, x.labels[axis]) for axis in sorted(axes) if axis in x.labels], reason)
    keep = bool(call.get("keepdim"))
    position = {}
    for axis in range(x.rank):
        if axis not in axes:
            position[axis] = axis if keep else len(position)
    labels = {position[axis]: vector for axis, vector in x.labels.items() if axis not in axes}
    metas = call.node.meta["value"]
    if isinstance(metas, tuple):
        return tuple(Value(meta.shape, labels) for meta in metas)
    return Value(metas.shape, labels)


def _reads_positions(call: Call) -> bool:
    """Whether someone reads the second result of max(x, dim): the positions."""
    return any(user.target is operator.getitem and user.args[1] == 1 for user in call.node.users)


HANDLERS = dict.fromkeys((*_OVER_SURVIVORS, *_OVER_ALL), reduction)
