"""Operators that re-arrange: views between shapes, permutations, expansion.

A view is taken apart into blocks of equal element count. In a block with one labelled axis, the labels are spread over
the block and looked at in its new shape: along at most one new axis they vary (a flatten repeats each label, its inverse
undoes that: no tie is needed); where they vary along several, the longest stays free and the others are tied. That one
heuristic gives channel shuffle, attention heads and pixel shuffle by views. Where the channels inside the heads turn out
to be frozen (normalised queries, attention over channels), the interpretation is repeated with the heads free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.fx import Node

from core.analysis.context import Call, Edit, Recorder, UnlabelledOperator
from core.analysis.schema import bind
from core.analysis.values import Labels, Value

aten = torch.ops.aten


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal element count into the finest pairs of axis runs with equal products."""
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [], []
        product_left = product_right = 1
        while True:
            if product_left <= product_right and i < len(before) and (product_left < product_right or not left):
                product_left *= before[i]
                left.append(i)
                i += 1
            elif product_right < product_left and j < len(after):
                product_right *= after[j]
                right.append(j)
                j += 1
            elif product_left == product_right:
                # Trailing ones belong to the block that is open.
                while j < len(after) and after[j] == 1:
                    right.append(j)
                    j += 1
                if not right and j < len(after):
                    product_right *= after[j]
                    right.append(j)
                    j += 1
                    continue
                break
            else:
                raise ValueError(f"shapes {tuple(before)} and {tuple(after)} have different sizes")
        pairs.append((left, right))
    return pairs


def rearranged(recorder: Recorder, x: Value, shape: tuple[int, ...]) -> Value:
    """Labels of `x` seen in `shape`."""
    labels: dict[int, Labels] = {}
    for inputs, outputs in blocks(x.shape, shape):
        labelled = [axis for axis in inputs if axis in x.labels]
        if len(labelled) > 1:
            labelled.sort(key=lambda axis: -x.shape[axis])
            for axis in labelled[1:]:
                recorder.freeze(x.labels[axis], "two sliceable axes are merged here")
        if not labelled:
            continue
        free = labelled[0]
        sizes = [x.shape[axis] for axis in inputs]
        position = inputs.index(free)
        lined_up = x.labels[free].reshape([-1 if k == position else 1 for k in range(len(sizes))])
        spread = np.broadcast_to(lined_up, sizes).reshape([shape[axis] for axis in outputs])
        varying = _varying(spread)
        if len(varying) > 1:
            spread = recorder.canonical(spread)
            varying = _varying(spread)
        if not varying:
            # All positions share one label: it can only go as a whole, which would empty the axis.
            recorder.freeze(spread.ravel()[:1], "the only channel of an axis", quiet=True)
            continue
        chosen = recorder.free_axis(spread, varying)
        rectangle = np.moveaxis(spread, chosen, -1).reshape(-1, spread.shape[chosen])
        labels[outputs[chosen]] = recorder.tie_rows(rectangle) if len(varying) > 1 else rectangle[0]
    return Value(shape, labels)


def _varying(array: np.ndarray) -> list[int]:
    return [
        axis for axis in range(array.ndim) if array.shape[axis] > 1 and (np.take(array, [0], axis=axis) != array).any()
    ]


def view(recorder: Recorder, call: Call) -> Value:
    """view and reshape: sizes of labelled axes follow the kept channels."""
    result = rearranged(recorder, call["self"], call.shape)
    rewrite_sizes(recorder, call, "size" if "size" in call.raw else "shape", result, infers=True)
    return result


def rewrite_sizes(recorder: Recorder, call: Call, argument: str, result: Value, *, infers: bool = False) -> None:
    """Re-derive the literal sizes of the labelled axes of `result`; −1 stays.

    A labelled axis whose size is computed from the batch size becomes −1 where the operator can infer one (`infers`).
    """
    sizes = call.raw[argument]
    offset = result.rank - len(sizes)
    changed = {axis - offset: vector for axis, vector in result.labels.items() if axis >= offset}
    computed = [index for index in changed if isinstance(sizes[index], Node)]
    inferred = [index for index, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if len(computed) > infers:
        for index in computed:
            recorder.freeze(changed[index], "its size is computed from the batch size")
        return
    if not any(size != -1 for index, size in enumerate(sizes) if index in changed):
        return

    def rewrite(edit: Edit) -> None:
        new = list(bind(edit.node)[argument])
        for index, vector in changed.items():
            if index in computed:
                # e.g. batch × channels: infer it instead, and spell out what was inferred before.
                for other in inferred:
                    new[other] = edit.count(changed[other]) if other in changed else result.shape[other + offset]
                new[index] = -1
            elif new[index] != -1:
                new[index] = edit.count(vector)
        edit.set(argument, new)

    recorder.rewrite(rewrite)


def reshape_without_sizes(recorder: Recorder, call: Call) -> Value:
    """flatten, unsqueeze, squeeze(dim): no literal to rewrite."""
    return rearranged(recorder, call["self"], call.shape)


def unflatten(recorder: Recorder, call: Call) -> Value:
    x = call["self"]
    result = rearranged(recorder, x, call.shape)
    dim, sizes = x.axis(call["dim"]), call.raw["sizes"]
    changed = {
        axis - dim: vector
        for axis, vector in result.labels.items()
        if dim <= axis < dim + len(sizes) and sizes[axis - dim] != -1
    }
    if any(isinstance(sizes[index], Node) for index in changed):
        raise UnlabelledOperator("unflatten with a size that is computed from the batch size")

    def rewrite(edit: Edit) -> None:
        new = list(bind(edit.node)["sizes"])
        for index, vector in changed.items():
            new[index] = edit.count(vector)
        edit.set("sizes", new)

    if changed:
        recorder.rewrite(rewrite)
    return result


def squeeze(recorder: Recorder, call: Call) -> Value:
    """squeeze without axes would also drop an axis that pruning leaves with one position: its axes are spelled out."""
    x = call["self"]
    if call.get("dim") is None:
        axes = [axis for axis in range(1, x.rank) if x.shape[axis] == 1]
        if x.rank - len(axes) != len(call.shape):
            raise UnlabelledOperator("squeeze that drops the batch axis")

        def rewrite(edit: Edit) -> None:
            edit.node.target = aten.squeeze.dims
            edit.node.args = (edit.node.args[0], axes)

        recorder.rewrite(rewrite)
    else:
        axes = call["dim"] if isinstance(call["dim"], (list, tuple)) else [call["dim"]]
        recorder.freeze_axes(x, axes, "squeeze would drop this axis if one position were left", quiet=True)
    return rearranged(recorder, x, call.shape)


def _permuted(order: Callable[[Call, Value], Sequence[int]]):
    def handler(recorder: Recorder, call: Call) -> Value:
        x = call["self"]
        labels = {}
        for axis, source in enumerate(order(call, x)):
            if source in x.labels:
                labels[axis] = x.labels[source]
        return Value(call.shape, labels)

    return handler


def permutation(call: Call, x: Value) -> list[int]:
    return [x.axis(axis) for axis in call["dims"]]


def transposition(call: Call, x: Value) -> list[int]:
    order = list(range(x.rank))
    if call.operator == "mT":
        first, second = x.rank - 2, x.rank - 1
    elif "dim0" in call.arguments or "axis0" in call.arguments:
        first, second = (
            x.axis(call.get(f"dim{side}") if f"dim{side}" in call.arguments else call[f"axis{side}"]) for side in (0, 1)
        )
    else:
        return order[::-1]
    order[first], order[second] = second, first
    return order


def moved(call: Call, x: Value) -> list[int]:
    sources, targets = (
        [x.axis(axis) for axis in ([axes] if isinstance(axes, int) else axes)]
        for axes in (call["source"], call["destination"])
    )
    order: list[int | None] = [None] * x.rank
    for source, target in zip(sources, targets, strict=True):
        order[target] = source
    rest = iter(axis for axis in range(x.rank) if axis not in sources)
    return [next(rest) if source is None else source for source in order]


def expand(recorder: Recorder, call: Call) -> Value:
    """Size-1 axes that are expanded get labels of their own: every copy is the same, so any number may go."""
    x, shape = call["self"], call.shape
    result = _expanded(recorder, x, shape)
    rewrite_sizes(recorder, call, "size", result)
    return result


def expand_as(recorder: Recorder, call: Call) -> Value:
    x, other = call["self"], call["other"]
    result = _expanded(recorder, x, call.shape)
    for axis, vector in result.labels.items():
        recorder.tie(vector, other.vector(axis), "expands to an axis that cannot be sliced")
    for axis, vector in other.labels.items():
        recorder.tie(vector, result.vector(axis), "expands an axis that cannot be sliced")
    return result


def _expanded(recorder: Recorder, x: Value, shape: tuple[int, ...]) -> Value:
    labels = {}
    for axis, size in enumerate(shape):
        own = axis - len(shape) + x.rank
        if own >= 0 and x.shape[own] == size:
            if own in x.labels:
                labels[axis] = x.labels[own]
        elif size > 1:
            labels[axis] = recorder.fresh(size)
    return Value(shape, labels)


def like(recorder: Recorder, call: Call) -> Value:
    """view_as, reshape_as: the shape of `other`, whose axes are kept or cut together with the result's."""
    x, other = call["self"], call["other"]
    result = rearranged(recorder, x, call.shape)
    for axis, size in enumerate(call.shape):
        if size > 1:
            recorder.tie(result.vector(axis), other.vector(axis), "takes the shape of what cannot be sliced")
    return result


HANDLERS = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), view),
    **dict.fromkeys(("flatten", "unsqueeze", "ravel"), reshape_without_sizes),
    "unflatten": unflatten,
    "squeeze": squeeze,
    "permute": _permuted(permutation),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT"), _permuted(transposition)),
    **dict.fromkeys(("movedim", "moveaxis"), _permuted(moved)),
    **dict.fromkeys(("expand", "broadcast_to"), expand),
    "expand_as": expand_as,
    **dict.fromkeys(("view_as", "reshape_as"), like),
}
