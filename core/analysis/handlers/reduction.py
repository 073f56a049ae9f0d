"""Reductions: the reduced axes need all their positions, the others pass."""

from __future__ import annotations

from core.analysis.context import Call, Recorder
from core.analysis.handlers.elementwise import elementwise
from core.analysis.values import Value

_NAMES = [
    "mean",
    "sum",
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
    "argmax",
    "argmin",
    "any",
    "all",
    "median",
    "nansum",
]


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
    recorder.freeze_axes(x, sorted(axes), f"{call.operator} runs over this axis")
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


HANDLERS = dict.fromkeys(_NAMES, reduction)
