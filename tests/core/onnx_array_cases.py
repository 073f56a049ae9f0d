"""Graphs that call ONNX's reductions and what moves elements or computes shapes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto

from tests.core.onnx_operator_cases import as_float, axes_of, case


@case("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd",
      "ReduceLogSum", "ReduceLogSumExp")  # fmt: skip
def reduction(maker, draw, operator):
    axes = draw(
        st.sampled_from([[1], [2], [3], [2, 3], [1, 2, 3], [1, 3]] + ([[-1], [-2, -1]] if maker.opset >= 11 else []))
    )
    source = maker.add("Exp", maker.h) if operator == "ReduceLogSum" else maker.h
    since = 13 if operator == "ReduceSum" else 18
    inputs, attributes = axes_of(maker, axes, maker.opset >= since)
    return maker.add(operator, source, *inputs, keepdims=draw(st.integers(0, 1)), **attributes)


@case("ArgMax", "ArgMin")
def extreme(maker, draw, operator):
    return as_float(
        maker, maker.add(operator, maker.h, axis=draw(st.sampled_from([1, 2, 3])), keepdims=draw(st.integers(0, 1)))
    )


@case("TopK", since=10)
def top_k(maker, draw, operator):
    values, _ = maker.add(
        "TopK", maker.h, maker.integers([draw(st.integers(1, 4))]), outputs=2, axis=draw(st.sampled_from([1, 2, 3]))
    )
    return values


@case("CumSum", since=11)
def cumulative(maker, draw, operator):
    axis = maker.constant(np.array(draw(st.sampled_from([1, 2, 3])), np.int64))
    return maker.add("CumSum", maker.h, axis, exclusive=draw(st.integers(0, 1)), reverse=draw(st.integers(0, 1)))


@case("Resize", since=11)
def resize(maker, draw, operator):
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    coordinates = draw(st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]))
    rounding = (
        draw(st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]))
        if mode == "nearest"
        else None
    )
    scales = draw(st.sampled_from([[2.0, 2.0], [1.5, 2.0], [0.5, 1.0], [3.0, 0.5]]))
    empty = maker.constant(np.zeros(0, np.float32))
    if draw(st.booleans()):
        inputs = [empty, maker.constant(np.array([1, 1, *scales], np.float32))]
    else:
        # Sizes name the batch, too, so the file takes one image at a time there; scales do not.
        inputs = [empty, maker.constant(np.array([1, 1, 2, 2], np.float32))]
    return maker.add(
        "Resize", maker.h, *inputs, mode=mode, coordinate_transformation_mode=coordinates, nearest_mode=rounding
    )


@case("Upsample", since=9, until=9)
def upsample(maker, draw, operator):
    scales = maker.constant(np.array([1, 1, draw(st.sampled_from([1, 2, 3])), 2], np.float32))
    return maker.add("Upsample", maker.h, scales, mode=draw(st.sampled_from(["nearest", "linear"])))


@case("Concat")
def concat(maker, draw, operator):
    axis = draw(st.sampled_from([1, 2, 3]))
    return maker.add("Concat", maker.h, maker.add("Relu", maker.h), maker.h, axis=axis)


@case("Split")
def split(maker, draw, operator):
    sizes = draw(st.sampled_from([[1, 3], [2, 2], [1, 1, 2]]))
    if maker.opset < 13:
        parts = maker.add("Split", maker.h, outputs=len(sizes), axis=1, split=sizes)
    else:
        parts = maker.add("Split", maker.h, maker.integers(sizes), outputs=len(sizes), axis=1)
    return maker.add("Concat", *reversed(parts), axis=1)


@case("Slice")
def slicing(maker, draw, operator):
    axis = draw(st.sampled_from([1, 2, 3]))
    start, end = draw(st.sampled_from([(0, 2), (1, 1000), (-3, -1), (1, 4)]))
    if maker.opset < 10:
        return maker.add("Slice", maker.h, starts=[start], ends=[end], axes=[axis])
    step = draw(st.sampled_from([1, 2]))
    if draw(st.booleans()):
        start, end, step = -1, -1000, -1
    return maker.add("Slice", maker.h, *(maker.integers([value]) for value in (start, end, axis, step)))


@case("Gather")
def gather(maker, draw, operator):
    axis = draw(st.sampled_from([1, 2, 3]))
    indices = draw(st.sampled_from([[0, 2], [3, 1, 1], [1]] + ([[-1, 0]] if maker.opset >= 11 else [])))
    scalar = draw(st.booleans())
    values = np.array(indices[0] if scalar else indices, np.int64)
    return maker.add("Gather", maker.h, maker.constant(values), axis=axis)


@case("GatherElements", since=11)
def gather_elements(maker, draw, operator):
    order = maker.add("ArgMax", maker.h, axis=3, keepdims=1)
    return maker.add("GatherElements", maker.h, order, axis=3)


@case("Pad")
def pad(maker, draw, operator):
    mode = draw(st.sampled_from(["constant", "reflect", "edge"]))
    channels = draw(st.integers(0, 2)) if mode == "constant" else 0
    sides = [draw(st.integers(0, 2)) for _ in range(4)]
    pads = [0, channels, *sides[:2], 0, 0, *sides[2:]]
    if maker.opset < 11:
        return maker.add("Pad", maker.h, mode=mode, pads=pads, value=0.5 if mode == "constant" else None)
    value = [maker.constant(0.5)] if mode == "constant" else []
    return maker.add("Pad", maker.h, maker.integers(pads), *value, mode=mode)


@case("Reshape")
def reshape(maker, draw, operator):
    shape = draw(st.sampled_from([[0, 2, 2, 36], [-1, 144], [0, -1, 6], [0, 0, 36], [-1, 2, 12, 6]]))
    return maker.add("Reshape", maker.h, maker.integers(shape))


@case("Flatten")
def flatten(maker, draw, operator):
    return maker.add("Flatten", maker.h, axis=draw(st.sampled_from([None, 1])))


@case("Transpose")
def transpose(maker, draw, operator):
    order = draw(st.permutations([1, 2, 3]))
    return maker.add("Transpose", maker.h, perm=[0, *order])


@case("Squeeze", "Unsqueeze")
def squeeze(maker, draw, operator):
    inputs, attributes = axes_of(maker, [2], maker.opset >= 13)
    wide = maker.add("Unsqueeze", maker.h, *inputs, **attributes)
    return maker.add("Squeeze", maker.add("Relu", wide), *inputs, **attributes)


@case("Expand", since=8)
def expand(maker, draw, operator):
    narrow = maker.add("GlobalAveragePool", maker.h)
    return maker.add("Expand", narrow, maker.integers([1, 1, draw(st.integers(1, 4)), 3]))


@case("Tile")
def tile(maker, draw, operator):
    return maker.add("Tile", maker.h, maker.integers([1, draw(st.integers(1, 2)), 1, draw(st.integers(1, 3))]))


@case("Shape", "Size", "Constant", "ConstantOfShape", "Range", since=11)
def folded(maker, draw, operator):
    """What exporters compute of shapes, down to constants."""
    whole = maker.add("Shape", maker.h)
    if operator == "Size":
        count = maker.add("Size", maker.add("Slice", whole, *(maker.integers([v]) for v in (1, 4))))
        return maker.add("Mul", maker.h, maker.add("Cast", count, to=TensorProto.FLOAT))
    height = maker.add("Gather", whole, maker.constant(np.array(2, np.int64)), axis=0)
    if operator == "Range":
        zero, one = (maker.constant(np.array(value, np.int64)) for value in (0, 1))
        steps = maker.add("Cast", maker.add("Range", zero, height, one), to=TensorProto.FLOAT)
        return maker.add("Mul", maker.h, steps)
    if operator == "ConstantOfShape":
        trailing = maker.add("Slice", whole, maker.integers([1]), maker.integers([4]))
        return maker.add("Add", maker.h, maker.add("ConstantOfShape", trailing))
    batch = maker.add("Gather", whole, maker.constant(np.array([0], np.int64)), axis=0)
    rest = maker.add("Constant", value_ints=[-1]) if maker.opset >= 12 else maker.integers([-1])
    return maker.add("Reshape", maker.h, maker.add("Concat", batch, rest, axis=0))


@case("Trilu", since=14)
def triangle(maker, draw, operator):
    return maker.add(
        "Trilu", maker.h, maker.constant(np.array(draw(st.integers(-2, 2)), np.int64)), upper=draw(st.integers(0, 1))
    )


@case("DepthToSpace", "SpaceToDepth")
def depth_and_space(maker, draw, operator):
    mode = draw(st.sampled_from(["DCR", "CRD"])) if operator == "DepthToSpace" and maker.opset >= 11 else None
    return maker.add(operator, maker.h, blocksize=2, mode=mode)
