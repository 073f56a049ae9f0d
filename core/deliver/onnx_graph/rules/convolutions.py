"""Convolutions, and the normalisations by stored statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core.deliver.onnx_graph.call import Call


def per_axis(value: Any, rank: int) -> list[int]:
    """One number per spatial axis; PyTorch takes a single one for all of them."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _convolution(rank: int) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        call.require(len(call.result.shape) == rank + 2, "an image without a batch axis")
        call.require(isinstance(call["groups"], int), "groups that depend on the batch")
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
