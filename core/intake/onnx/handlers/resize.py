"""Resize and Upsample. Every mode of ONNX is, along each axis, a product with a fixed matrix [out, in].

The matrix is computed by ONNX's rules. Where an upsampling operator of ATen does exactly that, it is used; else the
product with the matrix itself, which is exact for every mode, coordinate rule and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Known, Unsupported, Value

MAX_MATRIX_ELEMENTS = 2**22
_COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Rule:
    """How output positions find input positions, and what they take there."""

    mode: str
    coordinates: str
    rounding: str
    cubic_coefficient: float = -0.75
    exclude_outside: bool = False


def resize(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    rule = _rule(node)
    sizes, scales = _target(node, x)
    if rule.coordinates == "tf_crop_and_resize":
        raise Unsupported("coordinate_transformation_mode 'tf_crop_and_resize'")
    if node.get("antialias", 0) and any(scale < 1 for scale in scales):
        raise Unsupported("antialias")
    axes = [axis for axis in range(x.rank) if sizes[axis] != x.shape[axis] or scales[axis] != 1.0]
    if not axes:
        return x
    x.require_whole_images(axes, "resizes")
    first = min(axes)
    if first >= 2 and x.rank in (3, 4, 5):
        native = _native(builder, x, rule, sizes, scales)
        if native is not None:
            return native
    for axis in axes:
        x = _along(builder, x, axis, interpolation(x.shape[axis], sizes[axis], scales[axis], rule))
    return x


def _rule(node: OnnxNode) -> Rule:
    mode = node.get("mode", "nearest")
    if mode == "bilinear":
        mode = "linear"
    if mode not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"mode {mode!r}")
    if node.operator == "Upsample" or node.opset < 11:
        return Rule(mode, "asymmetric", "floor")
    coordinates = node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    if coordinates not in _COORDINATES or rounding not in _ROUNDINGS:
        raise Unsupported(f"coordinate_transformation_mode {coordinates!r} with nearest_mode {rounding!r}")
    cubic = float(f"{node.get('cubic_coeff_a', -0.75):.7g}")
    return Rule(mode, coordinates, rounding, cubic, bool(node.get("exclude_outside", 0)))


def _target(node: OnnxNode, x: Value) -> tuple[list[int], list[float]]:
    """Output sizes and scales of every axis."""
    if node.operator == "Upsample" or node.opset < 11:
        given = node.get("scales") or node.known(1)
        scales = given.one.reshape(-1).tolist() if isinstance(given, Known) else given
        return _by_scales(x, list(range(x.rank)), scales)
    axes = [x.axis(axis) for axis in node.get("axes", range(x.rank))]
    scales, sizes = node.known(2), node.known(3)
    if scales is not None and scales.one.numel():
        return _by_scales(x, axes, scales.one.reshape(-1).tolist())
    if sizes is None or len(sizes.one.reshape(-1)) != len(axes):
        raise Unsupported("neither scales nor sizes that fit its input")
    wanted = [int(size) for size in sizes.one.reshape(-1)]
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        raise Unsupported(f"keep_aspect_ratio_policy {policy!r}")
    result, ratios = list(x.shape), [1.0] * x.rank
    for axis, size in zip(axes, wanted, strict=True):
        if size < 1:
            raise Unsupported(f"size {size}")
        result[axis], ratios[axis] = size, size / x.shape[axis]
    return result, ratios


def _by_scales(x: Value, axes: list[int], scales: list[float]) -> tuple[list[int], list[float]]:
    if scales is None or len(scales) != len(axes) or not all(0 < scale < 1e6 for scale in scales):
        raise Unsupported(f"scales {scales}")
    result, ratios = list(x.shape), [1.0] * x.rank
    for axis, scale in zip(axes, scales, strict=True):
        result[axis], ratios[axis] = math.floor(x.shape[axis] * scale), scale
    if min(result) < 1:
        raise Unsupported(f"scales {scales}, which leave nothing of {list(x.shape)}")
    return result, ratios


def interpolation(size: int, target: int, scale: float, rule: Rule) -> Tensor:
    """float32 [target, size]: each output position as a weighted sum of input positions. Raises Unsupported."""
    if size * target > MAX_MATRIX_ELEMENTS:
        raise Unsupported(f"mode {rule.mode!r} with {rule.coordinates!r} from {size} to {target} positions")
    at = _positions(size, target, scale, rule.coordinates)
    rows = np.arange(target)
    matrix = np.zeros((target, size))
    if rule.mode == "nearest":
        matrix[rows, np.clip(_rounded(at, rule.rounding), 0, size - 1).astype(int)] = 1.0
    elif rule.mode == "linear":
        inside = np.clip(at.astype(np.float64), 0, size - 1)
        low = np.minimum(np.floor(inside).astype(int), max(size - 2, 0))
        share = inside - low
        np.add.at(matrix, (rows, low), 1 - share)
        np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
    else:
        base = np.floor(at.astype(np.float64)).astype(int)
        for offset in (-1, 0, 1, 2):
            weight = _cubic(at - base - offset, rule.cubic_coefficient)
            position = base + offset
            if rule.exclude_outside:
                weight = np.where((position < 0) | (position >= size), 0.0, weight)
            np.add.at(matrix, (rows, np.clip(position, 0, size - 1)), weight)
        if rule.exclude_outside:
            matrix /= matrix.sum(axis=1, keepdims=True)
    return torch.from_numpy(matrix.astype(np.float32))


def _positions(size: int, target: int, scale: float, coordinates: str) -> np.ndarray:
    """In float32, because rounding at ties follows it."""
    out = np.arange(target, dtype=np.float32)
    factor = np.float32(scale)
    if coordinates == "asymmetric":
        return out / factor
    if coordinates == "align_corners":
        return out * np.float32(size - 1) / np.float32(target - 1) if target > 1 else np.zeros(1, np.float32)
    if coordinates == "pytorch_half_pixel" and target == 1:
        return np.zeros(1, np.float32)
    centre = (out + np.float32(0.5)) / factor - np.float32(0.5)
    if coordinates == "half_pixel_symmetric":
        adjusted = np.float32(target) / (factor * np.float32(size))
        return np.float32(size) / 2 * (1 - adjusted) + centre
    return centre


def _rounded(at: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "floor":
        return np.floor(at)
    if rounding == "ceil":
        return np.ceil(at)
    half = np.float32(0.5)
    return np.ceil(at - half) if rounding == "round_prefer_floor" else np.floor(at + half)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel (1981)."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _native(builder: Builder, x: Value, rule: Rule, sizes: list[int], scales: list[float]) -> Value | None:
    """An upsampling operator that does the same, found by trying it on noise along each axis."""
    rank = x.rank - 2
    by_size = [math.floor(x.shape[axis] * scales[axis]) != sizes[axis] for axis in range(2, x.rank)]
    given = [None, scales[2:]] if not any(by_size) and _plain(scales) else [sizes[2:], None]
    for call in _candidates(rank, rule, given):
        if all(_agrees(call, x, axis, sizes, scales, rule) for axis in range(2, x.rank)):
            return call(builder.call, x)
    return None


def _plain(scales: list[float]) -> bool:
    """Scales that a person would write: 2 or 0.5, and not a quotient of sizes."""
    return all(scale == round(scale, 4) for scale in scales)


def _candidates(rank: int, rule: Rule, given: list) -> list[Callable]:
    suffix = {1: "1d", 2: "2d", 3: "3d"}[rank]
    if rule.mode == "nearest":
        targets = [getattr(aten, f"{name}{suffix}").vec for name in ("upsample_nearest", "_upsample_nearest_exact")]
        return [lambda run, x, target=target: run(target, x, *given) for target in targets]
    if rule.mode == "linear":
        target = getattr(aten, {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}[rank]).vec
    elif rank == 2:
        target = aten.upsample_bicubic2d.vec
    else:
        return []
    return [lambda run, x, corners=corners: run(target, x, given[0], corners, given[1]) for corners in (False, True)]


def _agrees(call: Callable, x: Value, axis: int, sizes: list[int], scales: list[float], rule: Rule) -> bool:
    """Whether the operator resizes `axis` as the rule's matrix does. The other axes are as long, but constant."""
    if x.shape[axis] * sizes[axis] > MAX_MATRIX_ELEMENTS:
        return False
    generator = torch.Generator().manual_seed(axis)
    line = torch.randn(x.shape[axis], generator=generator)
    shape = [x.shape[axis] if one == axis else 1 for one in range(2, x.rank)]
    noise = line.reshape(1, 1, *shape).expand(1, 1, *x.shape[2:])
    got = call(lambda target, *arguments: target(*arguments), noise)
    index = tuple(0 if one != axis else slice(None) for one in range(x.rank))
    want = interpolation(x.shape[axis], sizes[axis], scales[axis], rule) @ line
    return got.shape[2:] == torch.Size(sizes[2:]) and bool((got[index] - want).abs().max() < 1e-5)


def _along(builder: Builder, x: Value, axis: int, matrix: Tensor) -> Value:
    """The matrix times `x` along `axis`."""
    if axis == x.rank - 1:
        return builder.call(aten.matmul.default, x, Known.of(matrix.t().contiguous()))
    if axis == x.rank - 2:
        return builder.call(aten.matmul.default, Known.of(matrix), x)
    moved = builder.call(aten.transpose.int, x, axis, x.rank - 1)
    product = builder.call(aten.matmul.default, moved, Known.of(matrix.t().contiguous()))
    return builder.call(aten.transpose.int, product, axis, x.rank - 1)


HANDLERS = {"Resize": resize, "Upsample": resize}
