"""Graphs that call ONNX's convolutions, pools, products, normalisations and what else is a layer."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.core.onnx_graphs import CHANNELS, SIZE
from tests.core.onnx_operator_cases import Draw, case


def window(draw: Draw, *, transposed: bool = False) -> dict[str, object]:
    kernel = [draw(st.integers(1, 3)), draw(st.integers(1, 3))]
    found: dict[str, object] = {"kernel_shape": kernel, "strides": [draw(st.integers(1, 2)), draw(st.integers(1, 2))]}
    if draw(st.booleans()):
        found["pads"] = [draw(st.integers(0, side - 1)) for side in kernel * 2]
    elif not transposed and draw(st.booleans()):
        found["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    return found


@case("Conv")
def convolution(maker, draw, operator):
    groups = draw(st.sampled_from([1, 2, 4]))
    attributes = window(draw)
    if "auto_pad" not in attributes:
        attributes["dilations"] = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
    bias = [maker.weight(8)] if draw(st.booleans()) else []
    weight = maker.weight(8, CHANNELS // groups, *attributes["kernel_shape"])
    return maker.add("Conv", maker.h, weight, *bias, group=groups, **attributes)


@case("ConvTranspose")
def transposed_convolution(maker, draw, operator):
    groups = draw(st.sampled_from([1, 2, 4]))
    attributes = window(draw, transposed=True)
    strides = attributes["strides"]
    if draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, step - 1)) for step in strides]
    bias = [maker.weight(2 * groups)] if draw(st.booleans()) else []
    weight = maker.weight(CHANNELS, 2, *attributes["kernel_shape"])
    return maker.add("ConvTranspose", maker.h, weight, *bias, group=groups, **attributes)


@case("MaxPool", "AveragePool", since=10)
def pool(maker, draw, operator):
    attributes = window(draw)
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    if operator == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    return maker.add(operator, maker.h, **attributes)


@case("GlobalAveragePool", "GlobalMaxPool")
def global_pool(maker, draw, operator):
    return maker.add(operator, maker.h)


@case("Gemm")
def gemm(maker, draw, operator):
    flat = maker.add("Flatten", maker.h)
    transposed = draw(st.integers(0, 1))
    count = CHANNELS * SIZE * SIZE
    weight = maker.weight(*((5, count) if transposed else (count, 5)))
    bias = {"none": [], "row": [maker.weight(5)], "one": [maker.weight(1)]}[
        draw(st.sampled_from(["none", "row", "one"] if maker.opset >= 11 else ["row", "one"]))
    ]
    scale = draw(st.sampled_from([None, 0.5]))
    return maker.add("Gemm", flat, weight, *bias, transB=transposed, alpha=scale, beta=scale)


@case("MatMul")
def matmul(maker, draw, operator):
    kind = draw(st.sampled_from(["weight", "weight first", "self", "vector"]))
    if kind == "weight":
        return maker.add("MatMul", maker.h, maker.weight(SIZE, 5))
    if kind == "weight first":
        return maker.add("MatMul", maker.weight(5, SIZE), maker.h)
    if kind == "vector":
        return maker.add("MatMul", maker.h, maker.weight(SIZE))
    return maker.add("MatMul", maker.h, maker.add("Transpose", maker.h, perm=[0, 1, 3, 2]))


@case("Einsum", since=12)
def einsum(maker, draw, operator):
    equation, shape = draw(st.sampled_from([("nchw,dc->ndhw", (5, CHANNELS)), ("nchw,cw->nch", (CHANNELS, SIZE))]))
    return maker.add("Einsum", maker.h, maker.weight(*shape), equation=equation)


@case("BatchNormalization")
def batch_norm(maker, draw, operator):
    vectors = [maker.weight(CHANNELS) for _ in range(3)] + [maker.weight(CHANNELS, positive=True)]
    return maker.add(operator, maker.h, *vectors, epsilon=draw(st.sampled_from([None, 1e-3])))


@case("InstanceNormalization")
def instance_norm(maker, draw, operator):
    return maker.add(
        operator, maker.h, maker.weight(CHANNELS), maker.weight(CHANNELS), epsilon=draw(st.sampled_from([None, 1e-3]))
    )


@case("LayerNormalization", since=17)
def layer_norm(maker, draw, operator):
    axis = draw(st.sampled_from([1, 2, 3, -1]))
    shape = (CHANNELS, SIZE, SIZE)[axis - 1 if axis > 0 else 2 :]
    if draw(st.booleans()):
        # One number for several positions.
        shape = draw(st.sampled_from([(1,), (*shape[:-1], 1), shape[1:] or shape]))
    bias = [maker.weight(*shape)] if draw(st.booleans()) else []
    return maker.add(operator, maker.h, maker.weight(*shape), *bias, axis=axis)


@case("GroupNormalization", since=21)
def group_norm(maker, draw, operator):
    return maker.add(
        operator, maker.h, maker.weight(CHANNELS), maker.weight(CHANNELS), num_groups=draw(st.sampled_from([1, 2, 4]))
    )


@case("LRN")
def local_response(maker, draw, operator):
    return maker.add(
        operator,
        maker.h,
        size=draw(st.sampled_from([1, 3, 5])),
        alpha=draw(st.sampled_from([None, 0.5])),
        bias=draw(st.sampled_from([None, 2.0])),
    )


@case("LpNormalization")
def lp_normalisation(maker, draw, operator):
    return maker.add(operator, maker.h, axis=draw(st.sampled_from([1, 2, -1])), p=draw(st.sampled_from([1, 2])))


@case("MeanVarianceNormalization", since=9)
def mean_variance(maker, draw, operator):
    return maker.add(operator, maker.h, axes=draw(st.sampled_from([[2, 3], [1, 2, 3]])))


@case("Softmax", "LogSoftmax")
def softmax(maker, draw, operator):
    return maker.add(operator, maker.h, axis=draw(st.sampled_from([1, 2, 3] + ([-1] if maker.opset >= 11 else []))))


@case("RMSNormalization", since=23)
def rms_norm(maker, draw, operator):
    axis = draw(st.sampled_from([1, 2, 3, -1, -2]))
    shape = [CHANNELS, SIZE, SIZE][axis if axis < 0 else axis - 1 :]
    scale = maker.constant(np.random.default_rng(axis % 4).standard_normal(shape).astype(np.float32))
    return maker.add(operator, maker.h, scale, axis=axis, epsilon=draw(st.sampled_from([None, 1e-3])))


@case("Swish", since=24, until=24)
def swish(maker, draw, operator):
    return maker.add(operator, maker.h, alpha=draw(st.sampled_from([None, 1.0, 0.7, 1.702])))
