"""split, slice and getitem: parts of an axis.

Every part is registered as a piece: groups are cut at its borders and it can never become empty. Kept parts are in
general unequal, so every form of split becomes `split_with_sizes`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.fx import Node

from core.analysis.context import Call, Edit, Recorder, UnlabelledOperator
from core.analysis.values import Labels, Value

aten = torch.ops.aten


def split(recorder: Recorder, call: Call) -> tuple[Value, ...]:
    """split, chunk, split_with_sizes, tensor_split along `dim`."""
    x = call["self"]
    dim = x.axis(call["dim"])
    shapes = [meta.shape for meta in call.node.meta["value"]]
    whole = x.vector(dim)
    others = {axis: vector for axis, vector in x.labels.items() if axis != dim}
    if whole is None:
        return tuple(Value(shape, others) for shape in shapes)
    borders = [0]
    for shape in shapes:
        borders.append(borders[-1] + shape[dim])
    if borders[-1] != x.shape[dim] or min(shape[dim] for shape in shapes) == 0:
        raise UnlabelledOperator("split with empty or overlapping pieces")
    pieces = [whole[start:end] for start, end in pairwise(borders)]
    for index, piece in enumerate(pieces):
        recorder.piece(piece, f"[{index}]")

    def rewrite(edit: Edit) -> None:
        edit.node.target = aten.split_with_sizes.default
        edit.node.args = (edit.node.args[0], [edit.count(piece) for piece in pieces], dim)
        edit.node.kwargs = {}

    recorder.rewrite(rewrite)
    return tuple(Value(shape, {**others, dim: piece}) for shape, piece in zip(shapes, pieces, strict=True))


def slice_(recorder: Recorder, call: Call) -> Value:
    """x[start:end:step] along `dim`; the borders of a labelled axis become counts of kept channels."""
    x = call["self"]
    dim = x.axis(call["dim"])
    whole = x.vector(dim)
    others = {axis: vector for axis, vector in x.labels.items() if axis != dim}
    if whole is None:
        return Value(call.shape, others)
    if any(isinstance(call.raw[name], Node) for name in ("start", "end")):
        raise UnlabelledOperator("slice whose border is computed")
    start, end, step = slice(call["start"], call["end"], call["step"]).indices(len(whole))
    part = whole[start:end:step]
    if step != 1:
        return Value(call.shape, {**others, dim: _every(recorder, whole, start, end, step)})
    if len(part) == len(whole):
        return Value(call.shape, {**others, dim: whole})
    if len(part) == 0:
        raise UnlabelledOperator("empty slice")
    recorder.piece(part, "")

    def rewrite(edit: Edit) -> None:
        edit.set("start", edit.count(whole[:start]))
        edit.set("end", edit.count(whole[:end]))

    recorder.rewrite(rewrite)
    return Value(call.shape, {**others, dim: part})


def _every(recorder: Recorder, whole: Labels, start: int, end: int, step: int) -> Labels:
    """x[start::step] stays right if every run of `step` positions lives or dies as a whole."""
    if len(whole) % step or start >= step or end < len(whole):
        recorder.freeze(whole, "sliced with a step")
        return whole[start:end:step]
    runs = recorder.tie_rows(whole.reshape(-1, step).T)
    recorder.piece(runs, "")
    return runs


def getitem(recorder: Recorder, call: Call) -> Value:
    items = call["self"]
    if not isinstance(items, tuple):
        raise UnlabelledOperator("indexing of a tensor")
    return items[call["index"]]


HANDLERS = {
    **dict.fromkeys(
        (
            "split",
            "split_with_sizes",
            "chunk",
            "tensor_split",
            "unsafe_split",
            "unsafe_chunk",
            "unsafe_split_with_sizes",
        ),
        split,
    ),
    "slice": slice_,
    "getitem": getitem,
}
