"""Graphs that call ONNX's operators on each element."""

from __future__ import annotations

from hypothesis import strategies as st
from onnx import TensorProto

from tests.core.onnx_graphs import CHANNELS, SIZE, GraphMaker
from tests.core.onnx_operator_cases import Draw, as_float, case

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
