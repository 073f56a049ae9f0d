"""Element-wise operators and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.proto import TORCH_TYPES, type_name
from core.intake.onnx.values import Computed, Known, Unsupported, Value

_UNARY = {
    "Relu": aten.relu.default,
    "Sigmoid": aten.sigmoid.default,
    "Tanh": aten.tanh.default,
    "HardSwish": aten.hardswish.default,
    "Mish": aten.mish.default,
    "Exp": aten.exp.default,
    "Log": aten.log.default,
    "Sqrt": aten.sqrt.default,
    "Abs": aten.abs.default,
    "Neg": aten.neg.default,
    "Reciprocal": aten.reciprocal.default,
    "Floor": aten.floor.default,
    "Ceil": aten.ceil.default,
    "Round": aten.round.default,
    "Sign": aten.sign.default,
    "Erf": aten.erf.default,
    "Sin": aten.sin.default,
    "Cos": aten.cos.default,
    "Tan": aten.tan.default,
    "Asin": aten.asin.default,
    "Acos": aten.acos.default,
    "Atan": aten.atan.default,
    "Sinh": aten.sinh.default,
    "Cosh": aten.cosh.default,
    "Not": aten.logical_not.default,
    "IsNaN": aten.isnan.default,
    "IsInf": aten.isinf.default,
}
_COMPARISONS = {
    "Equal": (aten.eq.Scalar, aten.eq.Tensor),
    "Less": (aten.lt.Scalar, aten.lt.Tensor),
    "LessOrEqual": (aten.le.Scalar, aten.le.Tensor),
    "Greater": (aten.gt.Scalar, aten.gt.Tensor),
    "GreaterOrEqual": (aten.ge.Scalar, aten.ge.Tensor),
}
_LOGICAL = {"And": aten.logical_and.default, "Or": aten.logical_or.default, "Xor": aten.logical_xor.default}


def unary(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    if node.operator == "IsInf" and not (node.get("detect_negative", 1) and node.get("detect_positive", 1)):
        raise Unsupported("one sign only")
    return builder.call(_UNARY[node.operator], x)


def softsign(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    return builder.call(aten.div.Tensor, x, builder.call(aten.add.Tensor, builder.call(aten.abs.default, x), 1.0))


def arithmetic(builder: Builder, node: OnnxNode) -> Value:
    """Add, Sub, Mul, Div, of integers too; Div of integers rounds towards zero."""
    left, right = node.input(0), node.input(1)
    if node.operator == "Div" and not left.is_float:
        return builder.call(aten.div.Tensor_mode, left, right, rounding_mode="trunc")
    if node.operator in ("Add", "Mul") and literal(left, right) is not None:
        left, right = right, left
    if node.operator == "Sub" and literal(left, right) is not None:
        return builder.call(aten.rsub.Scalar, right, literal(left, right))
    target = {"Add": aten.add, "Sub": aten.sub, "Mul": aten.mul, "Div": aten.div}[node.operator].Tensor
    number = literal(right, left)
    return builder.call(target, left, right if number is None else number)


def literal(value: Value, other: Value) -> float | int | None:
    """The number that `value` is, where writing it as a literal beside `other` changes neither shape nor type."""
    if not isinstance(value, Known) or isinstance(other, Known) or value.rank > other.rank or value.dtype == torch.bool:
        return None
    number = value.scalar()
    return number if number is not None and math.isfinite(number) else None


def power(builder: Builder, node: OnnxNode) -> Value:
    base, exponent = node.input(0), node.input(1)
    number = literal(exponent, base)
    if number is not None and base.is_float:
        return builder.call(aten.pow.Tensor_Scalar, base, int(number) if number == int(number) else number)
    result = builder.call(aten.pow.Tensor_Tensor, base, exponent)
    return result if result.dtype == base.dtype else builder.call(aten.to.dtype, result, base.dtype)


def modulo(builder: Builder, node: OnnxNode) -> Value:
    target = aten.fmod.Tensor if node.get("fmod", 0) else aten.remainder.Tensor
    return builder.call(target, node.input(0), node.input(1))


def comparison(builder: Builder, node: OnnxNode) -> Value:
    left, right = node.input(0), node.input(1)
    with_number, with_tensor = _COMPARISONS[node.operator]
    number = literal(right, left)
    return builder.call(with_tensor, left, right) if number is None else builder.call(with_number, left, number)


def logical(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(_LOGICAL[node.operator], node.input(0), node.input(1))


def variadic(builder: Builder, node: OnnxNode) -> Value:
    """Sum, Mean, Min, Max of any number of operands."""
    targets = {
        "Sum": aten.add.Tensor,
        "Mean": aten.add.Tensor,
        "Min": aten.minimum.default,
        "Max": aten.maximum.default,
    }
    result = node.input(0)
    for index in range(1, len(node.operands)):
        result = builder.call(targets[node.operator], result, node.input(index))
    return builder.call(aten.div.Tensor, result, float(len(node.operands))) if node.operator == "Mean" else result


def clip(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    computed = [one for one in (node.optional(1), node.optional(2)) if isinstance(one, Computed)]
    if computed:
        lower, upper = node.optional(1), node.optional(2)
        x = x if lower is None else builder.call(aten.maximum.default, x, lower)
        return x if upper is None else builder.call(aten.minimum.default, x, upper)
    low, high = node.number("min", 1), node.number("max", 2)
    if low is None and high is None:
        return x
    if low == 0 and high == 6 and x.is_float:
        return builder.call(aten.relu6.default, x)
    return builder.call(aten.clamp.default, x, low, high)


def leaky_relu(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(aten.leaky_relu.default, node.input(0), _decimal(node.get("alpha", 0.01)))


def prelu(builder: Builder, node: OnnxNode) -> Value:
    """ATen's takes one slope per channel of axis 1, or one for all; any other broadcast is spelled out."""
    x, slope = node.input(0), node.input(1)
    own = slope.shape
    channels = x.shape[1] if x.rank > 1 else None
    per_channel = slope.rank == x.rank - 1 and own == (channels, *(1,) * (x.rank - 2))
    full = slope.rank == x.rank and own == (1, channels, *(1,) * (x.rank - 2))
    if isinstance(slope, Known) and slope.fixed and (per_channel or full or slope.one.numel() == 1):
        flat = Known.of(slope.one.reshape(-1), slope.name, trainable=slope.trainable)
        builder.layer(node.label, {"weight": flat})
        return builder.call(aten.prelu.default, x, flat)
    negative = builder.call(aten.clamp_max.default, x, 0.0)
    return builder.call(
        aten.add.Tensor, builder.call(aten.relu.default, x), builder.call(aten.mul.Tensor, negative, slope)
    )


def elu(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(aten.elu.default, node.input(0), _decimal(node.get("alpha", 1.0)))


def celu(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(aten.celu.default, node.input(0), _decimal(node.get("alpha", 1.0)))


def selu(builder: Builder, node: OnnxNode) -> Value:
    """elu(x, α, γ); α and γ are attributes, though always the same."""
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return builder.call(aten.elu.default, node.input(0), alpha, gamma)


def softplus(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(aten.softplus.default, node.input(0))


def gelu(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(aten.gelu.default, node.input(0), approximate=node.get("approximate", "none"))


def swish(builder: Builder, node: OnnxNode) -> Value:
    x, alpha = node.input(0), _decimal(node.get("alpha", 1.0))
    if alpha == 1.0:
        return builder.call(aten.silu.default, x)
    return builder.call(aten.mul.Tensor, x, builder.call(aten.sigmoid.default, builder.call(aten.mul.Tensor, x, alpha)))


def hard_sigmoid(builder: Builder, node: OnnxNode) -> Value:
    x, alpha, beta = node.input(0), _decimal(node.get("alpha", 0.2)), _decimal(node.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return builder.call(aten.hardsigmoid.default, x)
    line = builder.call(aten.add.Tensor, builder.call(aten.mul.Tensor, x, alpha), beta)
    return builder.call(aten.clamp.default, line, 0.0, 1.0)


def thresholded_relu(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(aten.threshold.default, node.input(0), _decimal(node.get("alpha", 1.0)), 0.0)


def shrink(builder: Builder, node: OnnxNode) -> Value:
    x, bias, bound = node.input(0), _decimal(node.get("bias", 0.0)), _decimal(node.get("lambd", 0.5))
    if bias not in (0.0, bound):
        raise Unsupported(f"bias {bias} with lambd {bound}")
    return builder.call((aten.hardshrink if bias == 0.0 else aten.softshrink).default, x, bound)


def where(builder: Builder, node: OnnxNode) -> Value:
    return builder.call(aten.where.self, node.input(0), node.input(1), node.input(2))


def cast(builder: Builder, node: OnnxNode) -> Value:
    if node.operator == "CastLike":
        dtype = node.input(1).dtype
    else:
        dtype = TORCH_TYPES.get(node.get("to"))
        if dtype is None:
            raise Unsupported(f"to {type_name(node.get('to', 0))}")
    x = node.input(0)
    return x if x.dtype == dtype else builder.call(aten.to.dtype, x, dtype)


def identity(builder: Builder, node: OnnxNode) -> Value:
    return node.input(0)


def dropout(builder: Builder, node: OnnxNode) -> tuple[Value, ...] | Value:
    """Nothing at inference; kept, so that training drops again."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Unsupported("the output mask")
    training = node.known(2)
    if training is not None and bool(training.one.reshape(-1).any()):
        raise Unsupported("training mode; export the network in evaluation mode")
    ratio = node.get("ratio")
    if ratio is None:
        given = node.known(1)
        ratio = 0.5 if given is None or given.scalar() is None else given.scalar()
    x = node.input(0)
    if isinstance(x, Known):
        return x
    builder.layer(node.label, {})
    return builder.call(aten.dropout.default, x, _decimal(ratio), False)


def _decimal(value: float) -> float:
    """A float32 attribute as the decimal that was written: 0.1 and not 0.10000000149011612."""
    return float(f"{value:.7g}")


HANDLERS: dict[str, Callable[[Builder, OnnxNode], Any]] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), arithmetic),
    **dict.fromkeys(_COMPARISONS, comparison),
    **dict.fromkeys(_LOGICAL, logical),
    **dict.fromkeys(("Sum", "Mean", "Min", "Max"), variadic),
    **dict.fromkeys(("Cast", "CastLike"), cast),
    "Softsign": softsign,
    "Pow": power,
    "Mod": modulo,
    "Clip": clip,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Elu": elu,
    "Celu": celu,
    "Selu": selu,
    "Softplus": softplus,
    "Gelu": gelu,
    "Swish": swish,
    "HardSigmoid": hard_sigmoid,
    "ThresholdedRelu": thresholded_relu,
    "Shrink": shrink,
    "Where": where,
    "Identity": identity,
    "Dropout": dropout,
}
