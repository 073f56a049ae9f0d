"""cat, stack and constant padding: axes that are put together from parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.analysis.context import Call, Edit, Recorder, UnlabelledOperator
from core.analysis.schema import bind
from core.analysis.values import Labels, Value


def cat(recorder: Recorder, call: Call) -> Value:
    """Labels along `dim` are concatenated, along every other axis they are tied."""
    parts: list[Value] = list(call["tensors"])
    if len({part.rank for part in parts}) > 1:
        raise UnlabelledOperator("cat of tensors of different rank")
    dim = parts[0].axis(call["dim"])
    labels: dict[int, Labels | None] = {}
    for axis in range(parts[0].rank):
        vectors = [part.vector(axis) for part in parts]
        if axis != dim:
            labels[axis] = recorder.join(vectors, "concatenated with a tensor that cannot be sliced")
        elif any(vector is not None for vector in vectors):
            filled = [
                recorder.frozen(part.shape[dim]) if vector is None else vector
                for part, vector in zip(parts, vectors, strict=True)
            ]
            labels[axis] = np.concatenate(filled)
    return Value(call.shape, labels)


def stack(recorder: Recorder, call: Call) -> Value:
    """All parts are tied; the new axis counts parts and cannot be sliced."""
    parts: list[Value] = list(call["tensors"])
    dim = call["dim"] + len(call.shape) if call["dim"] < 0 else call["dim"]
    labels: dict[int, Labels | None] = {}
    for axis in range(parts[0].rank):
        joined = recorder.join([part.vector(axis) for part in parts], "stacked with a tensor that cannot be sliced")
        labels[axis + (axis >= dim)] = joined
    return Value(call.shape, labels)


def pad(recorder: Recorder, call: Call) -> Value:
    """Constant padding, e.g. zero channels before and after a shortcut (He et al., option A).

    Padding along a labelled axis gets labels of its own, usually tied to real channels by the addition that follows;
    the pad counts then follow the kept ones. Negative padding crops: as many as are kept of what it cut off.
    """
    x, amounts = call["self"], call["pad"]
    pairs = {x.rank - 1 - index: (amounts[2 * index], amounts[2 * index + 1]) for index in range(len(amounts) // 2)}
    labels: dict[int, Labels] = {}
    ends: dict[int, tuple[_End, _End]] = {}
    for axis, vector in x.labels.items():
        before, after = pairs.get(axis, (0, 0))
        if (before, after) == (0, 0):
            labels[axis] = vector
        elif call.operator == "pad" and call["mode"] != "constant":
            recorder.freeze(vector, f"padded by {call['mode']}")
        else:
            front = _End.of(recorder, vector, before)
            back = _End.of(recorder, vector[::-1], after)
            left = vector[max(0, -before) : len(vector) - max(0, -after)]
            if before < 0 or after < 0:
                recorder.piece(left, "")
            labels[axis] = np.concatenate([front.added, left, back.added])
            ends[axis] = front, back

    def rewrite(edit: Edit) -> None:
        new = list(bind(edit.node)["pad"])
        for axis, (front, back) in ends.items():
            index = x.rank - 1 - axis
            new[2 * index : 2 * index + 2] = front.amount(edit), back.amount(edit)
        edit.set("pad", new)

    if ends:
        recorder.rewrite(rewrite)
    return Value(call.shape, labels)


@dataclass(frozen=True, eq=False)
class _End:
    """What padding does at one end of an axis: labels that it adds, or takes away."""

    added: Labels
    cropped: Labels

    @staticmethod
    def of(recorder: Recorder, inwards: Labels, amount: int) -> _End:
        return _End(recorder.fresh(max(0, amount)), inwards[: max(0, -amount)])

    def amount(self, edit: Edit) -> int:
        return edit.count(self.added) - edit.count(self.cropped)


HANDLERS = {
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
}
