"""Pooling. Where ATen's padding, rounding or divisor differs from ONNX's, the input is padded explicitly and averages are
divided by the counts that ONNX defines: a constant, since sizes are known."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.handlers.windows import Window, pad_spatial, read_window
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Known, Unsupported, Value

_MAXIMA = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_AVERAGES = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


def max_pool(builder: Builder, node: OnnxNode) -> Value:
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Unsupported("the output Indices")
    x = node.input(0)
    window = read_window(node, x)
    window = _covering(node, x, window)
    padding = window.before
    if not window.symmetric or any(2 * pad > extent for pad, extent in zip(padding, window.extent, strict=True)):
        x, padding = pad_spatial(builder, x, window.before, window.after, -math.inf), (0,) * window.rank
    return builder.call(
        _MAXIMA[window.rank], x, list(window.kernel), list(window.stride), list(padding), list(window.dilation)
    )


def average_pool(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    window = read_window(node, x)
    if set(window.dilation) != {1}:
        raise Unsupported(f"dilations {list(window.dilation)} of an average")
    covered = _covering(node, x, window)
    counts_padding = bool(node.get("count_include_pad", 0))
    fits = all(2 * pad <= size for pad, size in zip(window.before, window.kernel, strict=True))
    if covered == window and window.symmetric and fits:
        arguments = [list(window.kernel), list(window.stride), list(window.before), False, counts_padding]
        return builder.call(_AVERAGES[window.rank], x, *arguments)
    counted = pad_spatial(
        builder, Known.of(torch.ones(1, 1, *x.shape[2:])), window.before, window.after, float(counts_padding)
    )
    beyond = tuple(end - own for end, own in zip(covered.after, window.after, strict=True))
    counted = pad_spatial(builder, counted, (0,) * window.rank, beyond, 0.0)
    average = [list(window.kernel), list(window.stride)]
    shares = builder.call(_AVERAGES[window.rank], counted, *average)
    whole = builder.call(_AVERAGES[window.rank], pad_spatial(builder, x, covered.before, covered.after, 0.0), *average)
    return builder.call(aten.div.Tensor, whole, shares)


def _covering(node: OnnxNode, x: Value, window: Window) -> Window:
    """The window with as much padding at the end as rounding up (ceil_mode) needs; no window begins beyond the padding."""
    if not node.get("ceil_mode", 0):
        return window
    after = list(window.after)
    for axis, size in enumerate(x.shape[2:]):
        step, extent = window.stride[axis], window.extent[axis]
        padded = window.before[axis] + size + window.after[axis]
        count = -(-(padded - extent) // step) + 1
        if (count - 1) * step >= size + window.before[axis]:
            count -= 1
        after[axis] = max(after[axis], (count - 1) * step + extent - size - window.before[axis])
    return replace(window, after=tuple(after))


def global_average_pool(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    if x.rank == 4:
        return builder.call(aten.adaptive_avg_pool2d.default, x, [1, 1])
    return builder.call(aten.mean.dim, x, list(range(2, x.rank)), True)


def global_max_pool(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    return builder.call(aten.amax.default, x, list(range(2, x.rank)), True)


HANDLERS = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
}
