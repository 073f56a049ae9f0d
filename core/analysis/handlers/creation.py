"""Constant tensors made in the forward pass (zeros, ones, full): every position is the same, so any number may go."""

from __future__ import annotations

from core.analysis.context import Call, Recorder, UnlabelledOperator
from core.analysis.handlers.reshape import rewrite_sizes
from core.analysis.values import Value


def constant(recorder: Recorder, call: Call) -> Value:
    shape = call.shape
    result = Value(shape, {axis: recorder.fresh(size) for axis, size in enumerate(shape) if size > 1})
    if len(call.tensors) > ("self" in call.raw):
        raise UnlabelledOperator("constant filled with a tensor")
    rewrite_sizes(recorder, call, "size", result)
    return result


def symbolic_size(recorder: Recorder, call: Call) -> int:
    """The size of an axis as a number that other calls use: that axis must stay whole."""
    recorder.freeze(call["self"].vector(call["dim"]), "its size is read as a number")
    return call.node.meta["value"]


HANDLERS = {
    "sym_size": symbolic_size,
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), constant),
}
