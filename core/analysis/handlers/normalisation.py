"""Normalisations: per-channel ones pass channels on; those with statistics over channels need all, or the survivors."""

from __future__ import annotations

from core.analysis.context import Call, Edit, Read, Recorder, UnlabelledOperator
from core.analysis.values import Labels, Value

_STATISTICS = "takes statistics over this axis"


def batch_norm(recorder: Recorder, call: Call) -> Value:
    """Per channel of axis 1; in training form (batch statistics) the other axes are averaged over."""
    x = call["input"]
    if call.operator == "instance_norm" or call["training"]:
        recorder.freeze_axes(x, [axis for axis in range(x.rank) if axis != 1], _STATISTICS)
    parameters = [call[name] for name in ("weight", "bias", "running_mean", "running_var")]
    _tie_channels(recorder, x, parameters)
    return Value(x.shape, x.labels)


def group_norm(recorder: Recorder, call: Call) -> Value:
    """Statistics over each group of channels: whole groups live or die together, and the number of groups follows.

    With survivors, few large groups lose the same positions instead, and the statistics are over those that are left.
    """
    x, groups = call["input"], call["num_groups"]
    recorder.freeze_axes(x, [axis for axis in range(x.rank) if axis != 1], _STATISTICS)
    channels = x.vector(1)
    parameters = {name: call[name] for name in ("weight", "bias") if call[name] is not None}
    _tie_channels(recorder, x, list(parameters.values()))
    if channels is None:
        return Value(x.shape, x.labels)
    per_group = len(channels) // groups
    if groups == 1 or (recorder.survivors and groups < per_group):
        recorder.tie_rows(channels.reshape(groups, per_group))
        vectors = {name: value.vector(0) for name, value in parameters.items()}
        reads = [Read("input", 1, channels), *(Read(name, 0, v) for name, v in vectors.items() if v is not None)]
        recorder.run_over(reads, _STATISTICS, {1: channels})
    else:
        recorder.tie_rows(channels.reshape(groups, per_group).T)
        recorder.rewrite(lambda edit: edit.set("num_groups", edit.count(channels) // per_group))
    return Value(x.shape, x.labels)


def layer_norm(recorder: Recorder, call: Call) -> Value:
    """layer_norm and rms_norm: statistics over the last axes."""
    x = call["input"]
    lengths = call["normalized_shape"]
    offset = x.rank - len(lengths)
    parameters = {name: call.get(name) for name in ("weight", "bias") if call.get(name) is not None}
    reads: list[Read] = []
    for axis, labels in x.labels.items():
        if axis >= offset:
            reads.append(Read("input", axis, labels))
            for name, parameter in parameters.items():
                recorder.tie(labels, parameter.vector(axis - offset), "normalises channels that cannot be sliced")
                if axis - offset in parameter.labels:
                    reads.append(Read(name, axis - offset, parameter.labels[axis - offset]))
    for parameter in parameters.values():
        unread = [axis for axis in parameter.labels if axis + offset not in x.labels]
        recorder.freeze_axes(parameter, unread, _STATISTICS, quiet=True)
    recorder.run_over(reads, _STATISTICS, {axis: labels for axis, labels in x.labels.items() if axis >= offset})
    if any(not isinstance(length, int) for length in call.raw["normalized_shape"]):
        raise UnlabelledOperator("normalisation of a computed shape")

    def rewrite(edit: Edit) -> None:
        new = [edit.count(x.labels[i + offset]) if i + offset in x.labels else n for i, n in enumerate(lengths)]
        edit.set("normalized_shape", new)

    if reads:
        recorder.rewrite(rewrite)
    return Value(x.shape, x.labels)


def softmax(recorder: Recorder, call: Call) -> Value:
    """softmax and log_softmax: every position along `dim` depends on all of them."""
    x = call["self"]
    axis = x.axis(call["dim"])
    if axis in x.labels:
        labels = x.labels[axis]
        recorder.run_over([Read("self", axis, labels)], f"{call.operator} runs over this axis", {axis: labels})
    return Value(x.shape, x.labels)


def along_dim(recorder: Recorder, call: Call) -> Value:
    """cumsum and the like: a position along `dim` depends on all earlier ones."""
    x = call["self"]
    recorder.freeze(x.vector(call["dim"]), f"{call.operator} runs over this axis")
    return Value(x.shape, x.labels)


def _tie_channels(recorder: Recorder, x: Value, parameters: list[Value | None]) -> None:
    if x.rank < 2:
        raise UnlabelledOperator("normalisation of an input without channel axis")
    if x.shape[1] == 1:
        return
    vectors: list[Labels | None] = [x.vector(1), *(p.vector(0) for p in parameters if p is not None)]
    recorder.join(vectors, "normalises channels that cannot be sliced")


HANDLERS = {
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    "group_norm": group_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), along_dim),
}
