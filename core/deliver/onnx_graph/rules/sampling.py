"""Pooling and interpolation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.deliver.onnx_graph.call import Call
from core.deliver.onnx_graph.rules.convolutions import per_axis


def _window(call: Call, rank: int) -> dict[str, Any]:
    kernel = per_axis(call["kernel_size"], rank)
    return {
        "kernel_shape": kernel,
        "strides": per_axis(call["stride"], rank) if call["stride"] else kernel,
        "pads": 2 * per_axis(call["padding"], rank),
        "ceil_mode": int(call["ceil_mode"]),
    }


def _max_pool(rank: int) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        dilations = per_axis(call["dilation"], rank)
        return call.builder.add("MaxPool", call.tensor("self"), dilations=dilations, **_window(call, rank))

    return rule


def _average_pool(rank: int) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        call.require(call.get("divisor_override") is None, "a divisor of its own")
        counts_padding = int(call["count_include_pad"])
        return call.builder.add(
            "AveragePool", call.tensor("self"), count_include_pad=counts_padding, **_window(call, rank)
        )

    return rule


def _adaptive_average_pool(rank: int) -> Callable[[Call], object]:
    def rule(call: Call) -> object:
        sizes, wanted = call.shape("self")[-rank:], call.result.shape[-rank:]
        if set(wanted) == {1}:
            return call.builder.add("GlobalAveragePool", call.tensor("self"))
        if sizes == wanted:
            return call["self"]
        if all(size % one == 0 for size, one in zip(sizes, wanted, strict=True)):
            kernel = [size // one for size, one in zip(sizes, wanted, strict=True)]
            return call.builder.add("AveragePool", call.tensor("self"), kernel_shape=kernel, strides=kernel)
        call.require(rank == 2, "windows of unequal sizes")
        # Windows of unequal sizes overlap: an average over each is a product with a matrix per axis.
        rows, columns = (_averages(size, one) for size, one in zip(sizes, wanted, strict=True))
        dtype = call.result.dtype
        left = call.builder.tensor(rows.to(dtype), f"{call.node.name}.rows")
        right = call.builder.tensor(columns.T.to(dtype), f"{call.node.name}.columns")
        return call.builder.add("MatMul", left, call.builder.add("MatMul", call.tensor("self"), right))

    return rule


def _averages(size: int, windows: int) -> Tensor:
    """[windows, size]: the share of every position in each of PyTorch's adaptive windows."""
    shares = torch.zeros(windows, size, dtype=torch.float64)
    for window in range(windows):
        begin, end = window * size // windows, -(-(window + 1) * size // windows)
        shares[window, begin:end] = 1 / (end - begin)
    return shares


def _adaptive_max_pool(rank: int) -> Callable[[Call], Any]:
    def rule(call: Call) -> Any:
        sizes = call.shape("self")[-rank:]
        pooled = call.result[0] if isinstance(call.result, tuple) else call.result
        wanted = pooled.shape[-rank:]
        call.require(not any(size % one for size, one in zip(sizes, wanted, strict=True)), "windows of unequal sizes")
        call.require(not (isinstance(call.result, tuple) and _reads_positions(call)), "positions of maxima")
        kernel = [size // one for size, one in zip(sizes, wanted, strict=True)]
        found = call.builder.add("MaxPool", call.tensor("self"), kernel_shape=kernel, strides=kernel)
        return (found, found) if isinstance(call.result, tuple) else found

    return rule


def _reads_positions(call: Call) -> bool:
    return any(user.args[1] == 1 for user in call.node.users)


def _resize(mode: str) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        rank = call.rank("input" if "input" in call.values else "self")
        aligned = bool(call.get("align_corners"))
        coordinates = "asymmetric" if mode == "nearest" else "align_corners" if aligned else "half_pixel"
        axes = list(range(2, rank))
        sizes = call.builder.integers(call.result.shape[2:])
        given = call.tensor("input" if "input" in call.values else "self")
        return call.builder.add(
            "Resize",
            given,
            "",
            "",
            sizes,
            axes=axes,
            mode=mode,
            coordinate_transformation_mode=coordinates,
            nearest_mode="floor" if mode == "nearest" else None,
            cubic_coeff_a=-0.75 if mode == "cubic" else None,
        )

    return rule


def _pixel_shuffle(call: Call) -> str:
    call.require(call.rank("self") == 4, "an image without a batch axis")
    return call.builder.add("DepthToSpace", call.tensor("self"), blocksize=call["upscale_factor"], mode="CRD")


_MODES = {
    "nearest": ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    "linear": ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    "cubic": ("upsample_bicubic2d",),
}

RULES = {
    **{f"max_pool{rank}d": _max_pool(rank) for rank in (1, 2, 3)},
    **{f"avg_pool{rank}d": _average_pool(rank) for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": _adaptive_average_pool(rank) for rank in (1, 2, 3)},
    **{f"adaptive_max_pool{rank}d": _adaptive_max_pool(rank) for rank in (1, 2, 3)},
    **{name: _resize(mode) for mode, names in _MODES.items() for name in names},
    "pixel_shuffle": _pixel_shuffle,
}
