"""Convolutions: they contract over the weight's input axis; their output labels are the weight's output-axis labels.

Grouped convolutions have two exact modes. *Position* mode keeps the number of groups and removes the same position from
every group; *group* mode removes whole groups. Depthwise is group mode with one input channel per group. Group mode is
taken where groups are many and small (g > min(in per group, out per group)).
"""

from __future__ import annotations

import math
import operator

import numpy as np
from torch.fx import Node

from core.analysis.context import Call, Edit, Read, Recorder, UnlabelledOperator
from core.analysis.schema import bind
from core.analysis.values import Labels, Value

_KERNEL = "kernel positions"
_ALONG = "convolves along this axis"


def convolution(recorder: Recorder, call: Call) -> Value:
    """conv1d/2d/3d. x [N, C, …], weight [O, C/groups, …], bias [O] → [N, O, …]."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    along = _same_length(x, call)
    # Heads that lie along the batch axis: every one is convolved by itself.
    images = {0: x.labels[0]} if 0 in x.labels else {}
    _count(recorder, weight, Value(call.shape, {**images, **along}))
    groups = call["groups"]
    recorder.freeze_axes(weight, range(2, weight.rank), _KERNEL, quiet=True)
    recorder.freeze_axes(x, [axis for axis in range(2, x.rank) if axis not in along], _ALONG)
    recorder.run_over([Read("input", axis, labels) for axis, labels in along.items()], _ALONG, along)
    outputs = weight.vector(0)
    if groups == 1:
        if weight.shape[1] > 1:
            recorder.contract(x.vector(1), weight.vector(1))
        recorder.read("weight", 1, weight.vector(1))
    elif groups > min(x.shape[1] // groups, weight.shape[0] // groups):
        _group_mode(recorder, call, x, weight, groups)
    else:
        _position_mode(recorder, x, weight, groups)
    _tie_bias(recorder, bias, outputs)
    return Value(call.shape, {**images, 1: outputs, **along})


def _same_length(x: Value, call: Call) -> dict[int, Labels]:
    """Labels of the axes that are convolved along, position for position (channel attention by a conv1d, ECA-Net)."""
    found = {}
    for index, stride in enumerate(call["stride"] * (x.rank - 2) if len(call["stride"]) == 1 else call["stride"]):
        axis = index + 2
        if axis in x.labels and stride == 1 and call.shape[axis] == x.shape[axis]:
            found[axis] = x.labels[axis]
    return found


def transposed_convolution(recorder: Recorder, call: Call) -> Value:
    """conv_transpose1d/2d/3d. x [N, C, …], weight [C, O/groups, …], bias [O] → [N, O, …]."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    _count(recorder, weight, Value(x.shape))
    recorder.freeze_axes(weight, range(2, weight.rank), _KERNEL, quiet=True)
    recorder.freeze_axes(x, [0, *range(2, x.rank)], _ALONG)
    inputs = weight.vector(0)
    if weight.shape[0] > 1:
        recorder.contract(x.vector(1), inputs)
    outputs = weight.vector(1)
    if groups == 1:
        recorder.read("weight", 0, inputs)
    elif inputs is None:
        raise UnlabelledOperator("grouped transposed convolution of channels that cannot be sliced")
    elif groups > min(weight.shape[0] // groups, weight.shape[1]):
        # Group mode: the channels that a group makes go with those that it reads.
        recorder.freeze(outputs, "channels inside the groups of a grouped convolution", quiet=True)
        per_group = weight.shape[0] // groups
        outputs = recorder.tie_rows(inputs.reshape(groups, per_group).T).repeat(weight.shape[1])
        _rewrite_groups(recorder, call, inputs, per_group)
    else:
        # Position mode: every group makes the same positions, because they share the weight's second axis.
        recorder.tie_rows(inputs.reshape(groups, -1))
        recorder.read("weight", 0, inputs)
        outputs = None if outputs is None else np.tile(outputs, groups)
    _tie_bias(recorder, bias, outputs)
    return Value(call.shape, {1: outputs})


def _count(recorder: Recorder, weight: Value, walked: Value) -> None:
    """Every weight element is used once per position of `walked`, its channels apart."""
    constant = math.prod(size for axis, size in enumerate(weight.shape) if axis > 1 or axis not in weight.labels)
    constant *= math.prod(size for axis, size in enumerate(walked.shape) if axis != 1 and axis not in walked.labels)
    lengths = [labels for axis, labels in walked.labels.items() if axis != 1]
    recorder.macs(constant, [weight.vector(0), weight.vector(1), *lengths])
    if walked.rank != weight.rank:
        raise UnlabelledOperator("convolution of an input without batch dimension")


def _group_mode(recorder: Recorder, call: Call, x: Value, weight: Value, groups: int) -> None:
    inputs, outputs = x.vector(1), weight.vector(0)
    recorder.freeze(weight.vector(1), "channels inside the groups of a grouped convolution", quiet=True)
    if inputs is None or outputs is None:
        recorder.tie(inputs, outputs, "grouped convolution of channels that cannot be sliced")
        return
    input_rows = inputs.reshape(groups, -1)
    first = recorder.tie_rows(input_rows.T)
    recorder.tie(first, recorder.tie_rows(outputs.reshape(groups, -1).T), "")
    _rewrite_groups(recorder, call, inputs, input_rows.shape[1])


def _rewrite_groups(recorder: Recorder, call: Call, inputs: Labels, per_group: int) -> None:
    """Groups follow the kept channels; where every image has its own (batch × groups), the factor of the batch stays."""
    groups = call.raw["groups"]
    if isinstance(groups, int):
        recorder.rewrite(lambda edit: edit.set("groups", edit.count(inputs) // per_group))
        return
    factors = groups.args if groups.target is operator.mul else ()
    batch = [factor for factor in factors if isinstance(factor, Node) and factor.meta["value"] == 1]
    if len(batch) != 1:
        raise UnlabelledOperator("grouped convolution with a computed number of groups")

    def rewrite(edit: Edit) -> None:
        factors = bind(edit.node)["groups"].args
        (batch_size,) = (factor for factor in factors if isinstance(factor, Node) and factor.meta["value"] == 1)
        with edit.graph.inserting_before(edit.node):
            product = edit.graph.call_function(operator.mul, (batch_size, edit.count(inputs) // per_group))
        product.meta = {"path": edit.node.meta["path"], "value": edit.count(inputs) // per_group}
        edit.set("groups", product)

    recorder.rewrite(rewrite)


def _position_mode(recorder: Recorder, x: Value, weight: Value, groups: int) -> None:
    inputs, outputs = x.vector(1), weight.vector(0)
    positions = None if inputs is None else recorder.tie_rows(inputs.reshape(groups, -1))
    if weight.shape[1] > 1:
        recorder.contract(positions, weight.vector(1))
    else:
        recorder.freeze(positions, "the only channel of each group", quiet=True)
    recorder.read("weight", 1, weight.vector(1))
    if outputs is not None:
        recorder.tie_rows(outputs.reshape(groups, -1))


def _tie_bias(recorder: Recorder, bias: Value | None, outputs: object) -> None:
    if bias is not None and bias.shape[0] > 1:
        recorder.tie(bias.vector(0), outputs, "bias that cannot be sliced")


HANDLERS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
}
