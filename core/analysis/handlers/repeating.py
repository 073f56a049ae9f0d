"""Operators that repeat, turn or interleave positions: the labels do the same."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from core.analysis.context import Call, Edit, Recorder, UnlabelledOperator
from core.analysis.schema import bind
from core.analysis.values import Labels, Value


def repeat(recorder: Recorder, call: Call) -> Value:
    """repeat and tile. A repeated single position gets labels of its own: every copy is the same, so any may go."""
    x, name = call["self"], "repeats" if "repeats" in call.raw else "dims"
    shape = call.shape
    written = len(call.raw[name])
    offset = len(shape) - written
    labels: dict[int, Labels] = {}
    fresh: dict[int, Labels] = {}
    for axis, size in enumerate(shape):
        own = axis - len(shape) + x.rank
        before = x.shape[own] if own >= 0 else 1
        if own >= 0 and own in x.labels:
            labels[axis] = np.tile(x.labels[own], size // before)
        elif before == 1 and size > 1 and isinstance(call.raw[name][axis - offset], int):
            fresh[axis - offset] = labels[axis] = recorder.fresh(size)

    def rewrite(edit: Edit) -> None:
        counts = list(bind(edit.node)[name])
        for position, vector in fresh.items():
            counts[position] = edit.count(vector)
        edit.set(name, counts)

    if fresh:
        recorder.rewrite(rewrite)
    return Value(shape, labels)


def repeat_interleave(recorder: Recorder, call: Call) -> Value:
    """Every position `repeats` times in a row."""
    x, repeats = call["self"], call.get("repeats")
    if not isinstance(repeats, int) or call["dim"] is None:
        raise UnlabelledOperator("repeat_interleave with different numbers, or of all axes")
    dim = x.axis(call["dim"])
    return Value(call.shape, {a: vector.repeat(repeats) if a == dim else vector for a, vector in x.labels.items()})


def flip(recorder: Recorder, call: Call) -> Value:
    x = call["self"]
    dims = {x.axis(axis) for axis in call["dims"]}
    return Value(x.shape, {axis: vector[::-1] if axis in dims else vector for axis, vector in x.labels.items()})


def roll(recorder: Recorder, call: Call) -> Value:
    """The last `shift` positions come first: as many of them as are kept."""
    x, shifts, dims = call["self"], call.raw["shifts"], call["dims"]
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    if not dims:
        raise UnlabelledOperator("roll over all axes")
    labels = dict(x.labels)
    moved: dict[int, Labels] = {}
    for position, (axis, shift) in enumerate(zip(dims, shifts, strict=True)):
        axis = x.axis(axis)
        if axis not in x.labels:
            continue
        if isinstance(shift, Node) or axis in {x.axis(dims[other]) for other in moved}:
            raise UnlabelledOperator("roll of one axis twice, or by a computed shift")
        vector = labels[axis]
        labels[axis] = np.roll(vector, shift)
        moved[position] = vector[len(vector) - shift % len(vector) :]

    def rewrite(edit: Edit) -> None:
        new = list(shifts)
        for position, last in moved.items():
            new[position] = edit.count(last)
        edit.set("shifts", new)

    if moved:
        recorder.rewrite(rewrite)
    return Value(x.shape, labels)


def channel_shuffle(recorder: Recorder, call: Call) -> Value:
    """[N, g × c, …] → [N, c × g, …] of axis 1: as by views, the longer of the two axes stays free."""
    x, groups = call["self"], call["groups"]
    vector = x.vector(1)
    if vector is None:
        return Value(x.shape, x.labels)
    rows = vector.reshape(groups, -1)
    if rows.shape[1] >= groups:
        shuffled = recorder.tie_rows(rows).repeat(groups)
    else:
        per_group = rows.shape[1]
        shuffled = np.tile(recorder.tie_rows(rows.T), per_group)
        recorder.rewrite(lambda edit: edit.set("groups", edit.count(vector) // per_group))
    return Value(x.shape, {**x.labels, 1: shuffled})


def unfold(recorder: Recorder, call: Call) -> Value:
    """im2col: [N, C, H, W] → [N, C·k, L], every channel once per kernel position."""
    x = call["self"]
    channel = x.rank - 3
    recorder.freeze_axes(x, [axis for axis in range(x.rank) if axis != channel], "cut into windows along this axis")
    kernel = math.prod(call["kernel_size"])
    return Value(call.shape, {channel: vector.repeat(kernel) if (vector := x.vector(channel)) is not None else None})


def fold(recorder: Recorder, call: Call) -> Value:
    """col2im: [N, C·k, L] → [N, C, H, W]; the kernel positions of one channel live or die together."""
    x = call["self"]
    channel = x.rank - 2
    recorder.freeze_axes(
        x, [axis for axis in range(x.rank) if axis != channel], "put together from windows along this axis"
    )
    vector = x.vector(channel)
    if vector is None:
        return Value(call.shape)
    return Value(call.shape, {channel: recorder.tie_rows(vector.reshape(-1, math.prod(call["kernel_size"])).T)})


def windows(recorder: Recorder, call: Call) -> Value:
    """x.unfold(dimension, size, step): windows along one axis, their positions in a new last axis."""
    x = call["self"]
    dim = x.axis(call["dimension"])
    recorder.freeze(x.vector(dim), "cut into windows along this axis")
    return Value(call.shape, {axis: vector for axis, vector in x.labels.items() if axis != dim})


HANDLERS = {
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    "flip": flip,
    "roll": roll,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    "im2col": unfold,
    "col2im": fold,
    "unfold": windows,
}
