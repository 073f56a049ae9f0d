"""Conv and ConvTranspose. ATen pads both ends alike: what is more at one end is padded or cropped explicitly."""

from __future__ import annotations

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.handlers.windows import pad_spatial, read_window
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Unsupported, Value

_CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def convolution(builder: Builder, node: OnnxNode) -> Value:
    x, weight, bias = node.input(0), node.input(1), node.optional(2)
    window = read_window(node, x, weight.shape[2:])
    builder.layer(node.label, {"weight": weight, "bias": bias})
    padding = window.before
    if not window.symmetric:
        x = pad_spatial(builder, x, window.before, window.after, 0.0)
        padding = (0,) * window.rank
    return builder.call(
        _CONVOLUTIONS[window.rank],
        x,
        weight,
        bias,
        list(window.stride),
        list(padding),
        list(window.dilation),
        node.get("group", 1),
    )


def transposed_convolution(builder: Builder, node: OnnxNode) -> Value:
    """The result has (in − 1)·stride + extent positions; the pads are cut off it, `output_padding` is added at the end."""
    x, weight, bias = node.input(0), node.input(1), node.optional(2)
    window = read_window_transposed(node, x, weight.shape[2:])
    builder.layer(node.label, {"weight": weight, "bias": bias})
    (kernel_stride, dilation, extra, before, after) = window
    rank = len(before)
    if any(one >= max(step, gap) for one, step, gap in zip(extra, kernel_stride, dilation, strict=True)):
        raise Unsupported("output_padding that is not smaller than stride or dilation")
    common = [min(pair) for pair in zip(before, after, strict=True)]
    result = builder.call(
        _TRANSPOSED[rank],
        x,
        weight,
        bias,
        list(kernel_stride),
        common,
        list(extra),
        node.get("group", 1),
        list(dilation),
    )
    for axis in range(rank):
        start, end = before[axis] - common[axis], after[axis] - common[axis]
        if start or end:
            size = result.shape[axis + 2]
            result = builder.call(aten.slice.Tensor, result, axis + 2, start, size - end)
    return result


def read_window_transposed(
    node: OnnxNode, x: Value, kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(stride, dilation, output padding, cut before, cut after), from pads, auto_pad or output_shape."""
    rank = x.rank - 2
    if rank not in _TRANSPOSED or len(kernel) != rank:
        raise Unsupported(f"a kernel of {len(kernel)} axes over a value with {x.rank} dimensions")
    stride, dilation = (tuple(node.get(name) or (1,) * rank) for name in ("strides", "dilations"))
    extra = tuple(node.get("output_padding") or (0,) * rank)
    pads = tuple(node.get("pads") or (0,) * (2 * rank))
    mode, wanted = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if len(stride) != rank or len(dilation) != rank or len(extra) != rank or len(pads) != 2 * rank:
        raise Unsupported(f"strides, dilations, pads or output_padding that are not those of {rank} axes")
    if min((*stride, *dilation)) < 1 or min((*pads, *extra)) < 0:
        raise Unsupported("a stride or dilation below 1, or a negative padding")
    if wanted is None and mode in ("NOTSET", "", "VALID"):
        before, after = (pads[:rank], pads[rank:]) if mode != "VALID" else ((0,) * rank, (0,) * rank)
        return stride, dilation, extra, before, after
    if mode not in ("NOTSET", "", "SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {mode!r} with output_shape")
    sizes = x.shape[2:]
    target = [size * step for size, step in zip(sizes, stride, strict=True)] if wanted is None else list(wanted)[-rank:]
    full = [
        (size - 1) * step + (width - 1) * gap + 1 + more
        for size, step, width, gap, more in zip(sizes, stride, kernel, dilation, extra, strict=True)
    ]
    total = [whole - part for whole, part in zip(full, target, strict=True)]
    if min(total) < 0:
        raise Unsupported(f"output_shape {target} that is larger than the {full} positions there are")
    smaller = tuple(one // 2 for one in total)
    larger = tuple(one - half for one, half in zip(total, smaller, strict=True))
    before, after = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
    return stride, dilation, extra, before, after


HANDLERS = {"Conv": convolution, "ConvTranspose": transposed_convolution}
