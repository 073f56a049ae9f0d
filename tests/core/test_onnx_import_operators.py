"""Every handler of the importer against ONNX Runtime, with attributes and shapes drawn at random, in several opsets."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from core.analysis import analyse
from core.errors import EngineError
from core.intake.onnx import read_onnx
from core.intake.onnx.handlers import HANDLERS
from tests.core.onnx_graphs import CHANNELS, SIZE, GraphMaker, bytes_of, noise, run_file

Draw = Callable[[st.SearchStrategy], object]
CASES: dict[str, Callable[[GraphMaker, Draw, str], str]] = {}
OPSETS: dict[str, list[int]] = {}
ALL = [7, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]


def case(*operators: str, since: int = 7, until: int = 26) -> Callable:
    """Register `build(maker, draw, operator) -> output name` for each operator."""

    def register(build: Callable) -> Callable:
        for operator in operators:
            CASES[operator] = build
            OPSETS[operator] = [opset for opset in ALL if since <= opset <= until]
        return build

    return register


def as_float(maker: GraphMaker, name: str) -> str:
    return maker.add("Cast", name, to=TensorProto.FLOAT)


UNARY_SINCE = {"HardSwish": 14, "Mish": 18, "Erf": 9, "Sign": 9, "Sinh": 9, "Cosh": 9, "Round": 11}
for name in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Mish", "Exp", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Erf",
             "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Softsign", "Softplus", "Selu", "Identity", "Celu"):  # fmt: skip
    since = UNARY_SINCE.get(name, 12 if name == "Celu" else 7)
    case(name, since=since)(lambda maker, draw, operator: maker.add(operator, maker.h))


@case("Log", "Sqrt", "Reciprocal")
def of_positive(maker, draw, operator):
    return maker.add(operator, maker.add("Exp", maker.h))


@case("Asin", "Acos")
def of_small(maker, draw, operator):
    return maker.add(operator, maker.add("Tanh", maker.h))


@case("Not")
def negation(maker, draw, operator):
    zero = maker.constant(0.0)
    return as_float(maker, maker.add("Not", maker.add("Greater", maker.h, zero)))


@case("IsNaN", since=9)
def is_nan(maker, draw, operator):
    return as_float(maker, maker.add("IsNaN", maker.h))


@case("IsInf", since=10)
def is_infinite(maker, draw, operator):
    return as_float(maker, maker.add("IsInf", maker.h))


def operand(maker: GraphMaker, draw: Draw) -> str:
    kind = draw(st.sampled_from(["scalar", "channels", "whole", "computed", "last"]))
    if kind == "computed":
        return maker.add("Conv", "x", maker.weight(CHANNELS, 3, 1, 1))
    shapes = {"scalar": (), "channels": (CHANNELS, 1, 1), "whole": (1, CHANNELS, SIZE, SIZE), "last": (SIZE,)}
    return maker.weight(*shapes[kind], positive=True)


@case("Add", "Sub", "Mul", "Div")
def arithmetic(maker, draw, operator):
    other = operand(maker, draw)
    if operator != "Div" and draw(st.booleans()):
        return maker.add(operator, other, maker.h)
    return maker.add(operator, maker.h, maker.add("Exp", other) if operator == "Div" else other)


@case("Equal", "Less", "Greater", since=9)
def comparison(maker, draw, operator):
    left, right = (maker.add("Floor", maker.h), maker.add("Floor", operand(maker, draw)))
    if operator == "Equal" and maker.opset < 11:
        left, right = (maker.add("Cast", one, to=TensorProto.INT32) for one in (left, right))
    return as_float(maker, maker.add(operator, left, right))


@case("LessOrEqual", "GreaterOrEqual", since=12)
def weak_comparison(maker, draw, operator):
    return as_float(maker, maker.add(operator, maker.h, operand(maker, draw)))


@case("And", "Or", "Xor")
def logical(maker, draw, operator):
    zero, one = maker.constant(0.0), maker.constant(0.5)
    return as_float(maker, maker.add(operator, maker.add("Greater", maker.h, zero), maker.add("Less", maker.h, one)))


@case("Sum", "Mean", "Min", "Max", since=8)
def variadic(maker, draw, operator):
    return maker.add(operator, maker.h, *(operand(maker, draw) for _ in range(draw(st.integers(0, 2)))))


@case("Cast")
def cast(maker, draw, operator):
    whole = maker.add("Floor", maker.h)
    kind = draw(st.sampled_from([TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.FLOAT]))
    return as_float(maker, maker.add("Cast", whole, to=kind))


@case("CastLike", since=15)
def cast_like(maker, draw, operator):
    return maker.add("CastLike", maker.add("Greater", maker.h, maker.constant(0.0)), maker.h)


@case("Pow")
def power(maker, draw, operator):
    exponent = draw(st.sampled_from([0.5, 1.0, 2.0, 3.0, -1.0]))
    return maker.add("Pow", maker.add("Exp", maker.h), maker.constant(exponent))


@case("Mod", since=10)
def modulo(maker, draw, operator):
    return maker.add("Mod", maker.h, maker.constant(draw(st.sampled_from([0.7, 1.5, -2.0]))), fmod=1)


@case("Clip")
def clip(maker, draw, operator):
    low, high = draw(st.sampled_from([(None, 0.5), (-0.5, None), (-0.3, 0.4), (0.0, 6.0)]))
    if maker.opset < 11:
        return maker.add("Clip", maker.h, min=low, max=high)
    bounds = ["" if bound is None else maker.constant(bound) for bound in (low, high)]
    return maker.add("Clip", maker.h, *(bounds if bounds[1] else bounds[:1]))


@case("LeakyRelu", "Elu", "ThresholdedRelu", since=10)
def with_alpha(maker, draw, operator):
    return maker.add(operator, maker.h, alpha=draw(st.sampled_from([None, 0.05, 0.3, 0.9])))


@case("HardSigmoid")
def hard_sigmoid(maker, draw, operator):
    return maker.add(
        operator, maker.h, alpha=draw(st.sampled_from([None, 0.1, 0.5])), beta=draw(st.sampled_from([None, 0.3]))
    )


@case("PRelu", since=9)
def prelu(maker, draw, operator):
    shape = draw(st.sampled_from([(1,), (CHANNELS, 1, 1), (1, CHANNELS, 1, 1), (SIZE,)]))
    return maker.add("PRelu", maker.h, maker.weight(*shape))


@case("Gelu", since=20)
def gelu(maker, draw, operator):
    return maker.add("Gelu", maker.h, approximate=draw(st.sampled_from(["none", "tanh"])))


@case("Shrink", since=9)
def shrink(maker, draw, operator):
    bound = draw(st.sampled_from([0.2, 0.5]))
    return maker.add("Shrink", maker.h, lambd=bound, bias=draw(st.sampled_from([0.0, bound])))


@case("Where", since=9)
def where(maker, draw, operator):
    return maker.add("Where", maker.add("Greater", maker.h, maker.constant(0.0)), maker.h, operand(maker, draw))


@case("Dropout")
def dropout(maker, draw, operator):
    if maker.opset < 12:
        return maker.add("Dropout", maker.h, ratio=0.4)
    return maker.add("Dropout", maker.h, maker.constant(0.4))


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


def axes_of(maker: GraphMaker, axes: list[int], as_input: bool) -> tuple[list[str], dict[str, object]]:
    return ([maker.integers(axes)], {}) if as_input else ([], {"axes": axes})


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


@case("RMSNormalization", since=23)
def rms_norm(maker, draw, operator):
    axis = draw(st.sampled_from([1, 2, 3, -1, -2]))
    shape = [CHANNELS, SIZE, SIZE][axis if axis < 0 else axis - 1 :]
    scale = maker.constant(np.random.default_rng(axis % 4).standard_normal(shape).astype(np.float32))
    return maker.add(operator, maker.h, scale, axis=axis, epsilon=draw(st.sampled_from([None, 1e-3])))


@case("Swish", since=24, until=24)
def swish(maker, draw, operator):
    return maker.add(operator, maker.h, alpha=draw(st.sampled_from([None, 1.0, 0.7, 1.702])))


# A failing example of a graph is small already; making it smaller takes minutes.
PHASES = (Phase.explicit, Phase.generate)


def test_every_handler_is_tested():
    assert CASES.keys() == HANDLERS.keys()


@functools.cache
def _seed(name: str) -> int:
    return zlib.crc32(name.encode()) % 1000


@pytest.mark.parametrize("operator", sorted(CASES))
def test_the_imported_network_computes_what_onnx_runtime_does(operator):
    @settings(max_examples=4, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data):
        opset = data.draw(st.sampled_from(OPSETS[operator]))
        maker = GraphMaker(opset)
        output = CASES[operator](maker, data.draw, operator)
        model = maker.model(output)
        network = read_onnx(bytes_of(model))
        # The importer has compared them itself, at batch 1 too; this is somebody else's noise.
        x = noise(3, 3, SIZE, SIZE, seed=_seed(operator))
        (wanted,), (found,) = run_file(model, x=x.numpy()), network.run(x)
        assert found.shape == wanted.shape
        assert np.abs(found.numpy() - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())
        assert analyse(network).faults == ()

    check()


def test_a_mismatch_names_the_first_node_that_differs(monkeypatch):
    import core.intake.onnx.importing as importing

    def wrong(builder, node):
        from core.intake.onnx.builder import aten

        return builder.call(aten.relu.default, node.input(0))

    monkeypatch.setattr(importing, "HANDLERS", {**HANDLERS, "Sigmoid": wrong})
    maker = GraphMaker(13)
    output = maker.add("Neg", maker.add("Sigmoid", maker.add("Tanh", maker.h)))
    with pytest.raises(EngineError, match=r"first difference is at node 'Sigmoid_3' \(Sigmoid\)") as error:
        read_onnx(bytes_of(maker.model(output)))
    assert error.value.code == "invalid_model"


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("follows", ["nothing", "softmax", "reshape"])
def test_a_squeeze_without_axes_means_what_makes_the_network_agree(batch, follows):
    """At its end the batch goes where there is one image; in front of a reshape it was never meant."""
    maker = GraphMaker(13, batch=batch)
    output = maker.add("Squeeze", maker.add("GlobalAveragePool", maker.h))
    if follows == "softmax":
        output = maker.add("Softmax", output, axis=-1)
    elif follows == "reshape":
        output = maker.add("Reshape", output, maker.integers([-1, CHANNELS]))
    network = read_onnx(bytes_of(maker.model(output)))
    assert bool(network.interface.tail) == (follows != "reshape")
    assert network.outputs[0].shape == ((CHANNELS, 1, 1) if network.interface.tail else (CHANNELS,))
