"""Convolutions, and the normalisations by stored statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from core.deliver.onnx_graph.call import Call, Size


def per_axis(value: Any, rank: int) -> list[int]:
    """One number per spatial axis; PyTorch takes a single one for all of them."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _convolution(rank: int) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        call.require(len(call.result.shape) == rank + 2, "an image without a batch axis")
        if isinstance(call["groups"], Size):
            return _per_image(call, rank)
        kernel = call.raw["weight"].meta["value"].shape[2:]
        dilation = per_axis(call["dilation"], rank)
        return call.builder.add(
            "Conv",
            call.tensor("input"),
            call.tensor("weight"),
            call.tensor("bias") if call.given("bias") else "",
            kernel_shape=list(kernel),
            strides=per_axis(call["stride"], rank),
            dilations=dilation,
            pads=_pads(call["padding"], kernel, dilation),
            group=call["groups"],
        )

    return rule


def _per_image(call: Call, rank: int) -> str:
    """A convolution whose weights are computed for every image: images laid side by side as channels, groups per image.

    ONNX has no groups that depend on the batch. The windows under the kernel become channels by a convolution with unit
    vectors; what is left is a product of matrices per image and group.
    """
    builder, shape, weight_shape = call.builder, call.shape("input"), call.shape("weight")
    call.require(call.result.shape[0] == 1 and not call.given("bias"), "weights per image in another layout")
    channels, groups = shape[1], call.raw["groups"].meta["value"]
    kernel, dilation, strides = weight_shape[2:], per_axis(call["dilation"], rank), per_axis(call["stride"], rank)
    pads = _pads(call["padding"], kernel, dilation)
    taps, sizes = math.prod(kernel), call.result.shape[2:]
    windows = builder.add("Reshape", call.tensor("input"), builder.integers([-1, channels, *shape[2:]]))
    if taps > 1 or any(pads) or set(strides) != {1}:
        units = torch.eye(taps, dtype=call.result.dtype).view(taps, 1, *kernel).repeat(channels, *[1] * (rank + 1))
        windows = builder.add(
            "Conv",
            windows,
            builder.tensor(units, f"{call.node.name}.units"),
            kernel_shape=list(kernel),
            strides=strides,
            dilations=dilation,
            pads=pads,
            group=channels,
        )
    per_group = channels // groups * taps
    windows = builder.add("Reshape", windows, builder.integers([-1, groups, per_group, math.prod(sizes)]))
    outputs = weight_shape[0] // groups
    weight = builder.add("Reshape", call.tensor("weight"), builder.integers([-1, groups, outputs, per_group]))
    return builder.add("Reshape", builder.add("MatMul", weight, windows), builder.integers([1, -1, *sizes]))


def _pads(padding: Any, kernel: tuple[int, ...], dilation: list[int]) -> list[int]:
    """Pads before every axis, then behind every axis."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return [*(size // 2 for size in total), *(size - size // 2 for size in total)]
    return 2 * per_axis(padding, len(kernel))


def _transposed_convolution(rank: int) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        call.require(len(call.result.shape) == rank + 2, "an image without a batch axis")
        return call.builder.add(
            "ConvTranspose",
            call.tensor("input"),
            call.tensor("weight"),
            call.tensor("bias") if call.given("bias") else "",
            kernel_shape=list(call.raw["weight"].meta["value"].shape[2:]),
            strides=per_axis(call["stride"], rank),
            dilations=per_axis(call["dilation"], rank),
            pads=2 * per_axis(call["padding"], rank),
            output_padding=per_axis(call["output_padding"], rank),
            group=call["groups"],
        )

    return rule


def _batch_norm(call: Call) -> str:
    call.require(not call["training"] and call.given("running_mean"), "normalisation by the batch")
    channels = call.shape("running_mean")
    vectors = []
    for name, default in (("weight", 1.0), ("bias", 0.0)):
        if call.given(name):
            vectors.append(call.tensor(name))
        else:
            vectors.append(call.builder.tensor(torch.full(channels, default), f"{call.node.name}.{name}"))
    statistics = [call.tensor("running_mean"), call.tensor("running_var")]
    return call.builder.add(
        "BatchNormalization", call.tensor("input"), *vectors, *statistics, epsilon=float(call["eps"])
    )


RULES = {
    **{f"conv{rank}d": _convolution(rank) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": _transposed_convolution(rank) for rank in (1, 2, 3)},
    "batch_norm": _batch_norm,
}
