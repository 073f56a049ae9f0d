"""Normalisations: per-channel ones pass channels on; those with statistics over channels need all of them."""

from __future__ import annotations

from core.analysis.context import Call, Recorder, UnlabelledOperator
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
    """Statistics over each group of channels: whole groups live or die together, and the number of groups follows."""
    x, groups = call["input"], call["num_groups"]
    recorder.freeze_axes(x, [axis for axis in range(x.rank) if axis != 1], _STATISTICS)
    channels = x.vector(1)
    _tie_channels(recorder, x, [call["weight"], call["bias"]])
    if channels is not None and groups == 1:
        recorder.freeze(channels, _STATISTICS)
    elif channels is not None:
        recorder.tie_rows(channels.reshape(groups, -1).T)
        per_group = len(channels) // groups
        recorder.rewrite(lambda edit: edit.set("num_groups", edit.count(channels) // per_group))
    return Value(x.shape, x.labels)


def layer_norm(recorder: Recorder, call: Call) -> Value:
    """Statistics over the last axes."""
    x = call["input"]
    count = len(call["normalized_shape"])
    recorder.freeze_axes(x, range(x.rank - count, x.rank), _STATISTICS)
    for name in ("weight", "bias"):
        parameter = call.get(name)
        if parameter is not None:
            recorder.freeze_axes(parameter, range(parameter.rank), _STATISTICS, quiet=True)
    return Value(x.shape, x.labels)


def along_dim(recorder: Recorder, call: Call) -> Value:
    """softmax, cumsum and the like: every position along `dim` depends on all (or earlier) ones."""
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
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp"), along_dim),
}
