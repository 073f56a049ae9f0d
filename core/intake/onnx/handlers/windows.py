"""Windows that slide over the spatial axes: kernel, stride, dilation and the four ways ONNX has to say the padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Unsupported, Value


@dataclass(frozen=True)
class Window:
    """Per spatial axis. `before` and `after`: positions added at both ends."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def symmetric(self) -> bool:
        return self.before == self.after

    @property
    def extent(self) -> tuple[int, ...]:
        """Positions that one window spans."""
        return tuple((size - 1) * gap + 1 for size, gap in zip(self.kernel, self.dilation, strict=True))


def read_window(node: OnnxNode, x: Value, kernel: Sequence[int] | None = None) -> Window:
    """The window of a convolution (its `kernel` from the weight) or pooling over `x` [N, C, …]."""
    kernel = tuple(node.get("kernel_shape") or kernel or ())
    rank = x.rank - 2
    if rank not in (1, 2, 3) or len(kernel) != rank:
        raise Unsupported(f"a window of {len(kernel)} axes over a value with {x.rank} dimensions")
    stride, dilation = (tuple(node.get(name) or (1,) * rank) for name in ("strides", "dilations"))
    pads = tuple(node.get("pads") or (0,) * (2 * rank))
    if len(stride) != rank or len(dilation) != rank or len(pads) != 2 * rank:
        raise Unsupported(f"strides, dilations or pads that are not those of {rank} axes")
    if min((*kernel, *stride, *dilation)) < 1 or min(pads) < 0:
        raise Unsupported("a kernel, stride or dilation below 1, or a negative padding")
    window = Window(kernel, stride, dilation, pads[:rank], pads[rank:])
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return window
    if mode not in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {mode!r}")
    total = [0] * rank
    if mode != "VALID":
        for axis, (size, step, extent) in enumerate(zip(x.shape[2:], stride, window.extent, strict=True)):
            total[axis] = max(0, (-(-size // step) - 1) * step + extent - size)
    smaller = tuple(one // 2 for one in total)
    larger = tuple(one - half for one, half in zip(total, smaller, strict=True))
    before, after = (larger, smaller) if mode == "SAME_LOWER" else (smaller, larger)
    return Window(kernel, stride, dilation, before, after)


def pad_spatial(builder: Builder, x: Value, before: Sequence[int], after: Sequence[int], fill: float) -> Value:
    """Explicit constant padding of the trailing axes; `x` itself where there is none."""
    if not any((*before, *after)):
        return x
    amounts = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
    return builder.call(aten.constant_pad_nd.default, x, amounts, fill)
