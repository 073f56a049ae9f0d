"""Reads and writes of positions by number: index tensors, select, scatter into a part of an axis.

A list of channels that is stored with the network (a fixed permutation, a choice of channels) moves labels about like
any other operator: the list is cut with them and its values are renumbered. Every other way of picking positions by
number needs the axis as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from core.analysis.context import Call, Edit, Recorder, UnlabelledOperator
from core.analysis.schema import operator_name
from core.analysis.values import Labels, Value

_PASSING = {"lift_fresh_copy", "detach_", "detach", "alias", "clone"}
_PICKING = {"index", "index_select"}
# Lists that read every position more often than this are those of tables (relative positions), not of channels.
_MOST_PICKS = 4


def index(recorder: Recorder, call: Call) -> Value:
    """x[:, idx]: axes without an index pass; one stored list of positions re-arranges the labels of its axis."""
    x, given = call["self"], list(call["indices"])
    indexed = [axis for axis, one in enumerate(given) if one is not None]
    if any(_is_mask(call.raw["indices"][axis]) for axis in indexed):
        raise UnlabelledOperator("indexing by a mask")
    ranks = [given[axis].rank for axis in indexed]
    adjacent = indexed[-1] - indexed[0] + 1 == len(indexed)
    first = indexed[0] if adjacent else 0
    labels: dict[int, Labels] = {}
    position = 0
    for axis in range(x.rank):
        if position == first:
            position += max(ranks)
        if axis not in indexed:
            if axis in x.labels:
                labels[position] = x.labels[axis]
            position += 1
    if len(indexed) == 1 and ranks == [1] and indexed[0] in x.labels:
        picked = _picked(recorder, x.labels[indexed[0]], given[indexed[0]], call.raw["indices"][indexed[0]])
        if picked is not None:
            labels[first] = picked
    else:
        recorder.freeze_axes(x, indexed, "positions of this axis are picked by number")
    for axis in indexed:
        if first not in labels:
            recorder.freeze_axes(given[axis], range(given[axis].rank), "positions by number", quiet=True)
    return Value(call.shape, labels)


def index_select(recorder: Recorder, call: Call) -> Value:
    x, positions = call["self"], call["index"]
    dim = x.axis(call["dim"])
    labels = dict(x.labels)
    if dim in labels:
        picked = _picked(recorder, labels.pop(dim), positions, call.raw["index"])
        if picked is not None:
            labels[dim] = picked
    if dim not in labels:
        recorder.freeze_axes(positions, range(positions.rank), "positions by number", quiet=True)
    return Value(call.shape, labels)


def _picked(recorder: Recorder, labels: Labels, positions: Value, node: Node) -> Labels | None:
    """Labels of the picked positions; the stored list of them is cut and renumbered. None where the axis must stay."""
    try:
        if positions.numel > _MOST_PICKS * len(labels):
            raise UnlabelledOperator("a table that is read by number")
        name, tensor = _stored_list(recorder, node)
        if recorder.positions.get(name, labels) is not labels:
            raise UnlabelledOperator("one list of positions for several axes")
    except UnlabelledOperator as refusal:
        recorder.freeze(labels, str(refusal))
        return None
    picked = labels[tensor.cpu().numpy()]
    if len(picked) > 1:
        recorder.tie(positions.vector(0), picked, "positions that cannot be sliced")
    recorder.piece(picked, "")
    recorder.point(name, labels)
    return picked


def _stored_list(recorder: Recorder, node: Node) -> tuple[str, Tensor]:
    """The tensor that `node` is, if it is stored and used for nothing but picking positions."""
    source = node
    while source.op == "call_function" and operator_name(source.target) in _PASSING:
        source = source.args[0]
    if source.op != "get_attr":
        raise UnlabelledOperator("positions that are computed")
    reads = [one for one in source.graph.find_nodes(op="get_attr") if one.target == source.target]
    waiting = [user for read in reads for user in read.users]
    while waiting:
        user = waiting.pop()
        if operator_name(user.target) in _PASSING:
            waiting += user.users
        elif operator_name(user.target) not in _PICKING or source in user.args[:1]:
            raise UnlabelledOperator("positions that are used for other things too")
    tensor = recorder.tensors[source.target]
    if tensor.dtype not in (torch.int64, torch.int32) or tensor.ndim != 1:
        raise UnlabelledOperator("positions that are not a list of numbers")
    return source.target, tensor


def _is_mask(node: Node) -> bool:
    return node.meta["value"].dtype in (torch.bool, torch.uint8)


def select(recorder: Recorder, call: Call) -> Value | tuple[Value, ...]:
    """One position (select) or every position (unbind) of an axis by number: that axis must stay whole."""
    x = call["self"]
    dim = x.axis(call["dim"])
    recorder.freeze(x.vector(dim), f"{call.operator} picks positions of this axis by number")
    labels = {axis - (axis > dim): vector for axis, vector in x.labels.items() if axis != dim}
    metas = call.node.meta["value"]
    if isinstance(metas, tuple):
        return tuple(Value(meta.shape, labels) for meta in metas)
    return Value(metas.shape, labels)


def select_scatter(recorder: Recorder, call: Call) -> Value:
    """x with the position `index` of axis `dim` replaced by `src`, which lacks that axis."""
    x, source = call["self"], call["src"]
    dim = x.axis(call["dim"])
    recorder.freeze(x.vector(dim), "a position of this axis is written by number")
    for axis in range(x.rank):
        if axis != dim and x.shape[axis] > 1:
            recorder.tie(x.vector(axis), source.vector(axis - (axis > dim)), "written over by what cannot be sliced")
    return Value(x.shape, x.labels)


def slice_scatter(recorder: Recorder, call: Call) -> Value:
    """x with x[start:end] along `dim` replaced by `src`; the borders of a labelled axis follow the kept channels."""
    x, source = call["self"], call["src"]
    dim = x.axis(call["dim"])
    whole = x.vector(dim)
    for axis in range(x.rank):
        if axis != dim and x.shape[axis] > 1:
            recorder.tie(x.vector(axis), source.vector(axis), "written over by what cannot be sliced")
    start, end, step = slice(call["start"], call["end"], call["step"]).indices(x.shape[dim])
    if whole is None or step != 1:
        recorder.freeze(whole, "written over with a step")
        recorder.freeze(source.vector(dim), "written into an axis that cannot be sliced")
        return Value(x.shape, x.labels)
    if end - start > 1:
        recorder.tie(whole[start:end], source.vector(dim), "written over by what cannot be sliced")
    recorder.piece(whole[start:end], "")

    def rewrite(edit: Edit) -> None:
        edit.set("start", edit.count(whole[:start]))
        edit.set("end", edit.count(whole[:end]))

    recorder.rewrite(rewrite)
    return Value(x.shape, x.labels)


def embedding(recorder: Recorder, call: Call) -> Value:
    """weight [V, D], indices […] → […, D]: rows are picked by number, columns pass."""
    weight, indices = call["weight"], call["indices"]
    recorder.freeze(weight.vector(0), "rows of an embedding are picked by number", quiet=True)
    recorder.freeze_axes(indices, range(indices.rank), "numbers of an embedding", quiet=True)
    return Value(call.shape, {indices.rank: weight.vector(1)})


HANDLERS = {
    "index": index,
    "index_select": index_select,
    **dict.fromkeys(("select", "unbind"), select),
    "select_scatter": select_scatter,
    "slice_scatter": slice_scatter,
    "embedding": embedding,
}
