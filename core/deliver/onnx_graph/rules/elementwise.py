"""Operators that treat every element by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.deliver.onnx_graph.call import Call, Live

_SAME_NAME = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "neg": "Neg",
    "reciprocal": "Reciprocal",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "sign": "Sign",
    "round": "Round",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "softsign": "Softsign",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "logical_not": "Not",
}
_COMPARISONS = {
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}


def _unary(operator: str) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        return call.builder.add(operator, call.tensor("self", call.result.dtype))

    return rule


def _binary(operator: str) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        dtype = call.result.dtype
        other = call.tensor("other", dtype)
        alpha = call.get("alpha", 1)
        if alpha != 1:
            other = call.builder.add("Mul", other, call.builder.scalar(alpha, dtype))
        return call.builder.add(operator, call.tensor("self", dtype), other)

    return rule


def _comparison(operator: str) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        dtype = call.raw["self"].meta["value"].dtype
        return call.builder.add(operator, call.tensor("self", dtype), call.tensor("other", dtype))

    return rule


def _unequal(call: Call) -> str:
    return call.builder.add("Not", _comparison("Equal")(call))


def _reversed_subtraction(call: Call) -> str:
    call.require(call["alpha"] == 1, "alpha")
    dtype = call.result.dtype
    return call.builder.add("Sub", call.tensor("other", dtype), call.tensor("self", dtype))


def _division(call: Call) -> str:
    dtype = call.result.dtype
    quotient = call.builder.add("Div", call.tensor("self", dtype), call.tensor("other", dtype))
    mode = call.get("rounding_mode")
    if mode is None:
        return quotient
    call.require(mode == "floor" and dtype.is_floating_point, f"division rounded by {mode!r}")
    return call.builder.add("Floor", quotient)


def _silu(call: Call) -> str:
    value = call.tensor("self")
    return call.builder.add("Mul", value, call.builder.add("Sigmoid", value))


def _gelu(call: Call) -> str:
    return call.builder.add("Gelu", call.tensor("self"), approximate=call["approximate"])


def _hard_sigmoid(call: Call) -> str:
    return call.builder.add("HardSigmoid", call.tensor("self"), alpha=1 / 6, beta=0.5)


def _clip(low: str, high: str) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        dtype = call.result.dtype
        limits = [call.get(name) for name in (low, high)]
        call.require(not any(isinstance(limit, (Live, torch.Tensor)) for limit in limits), "limits per element")
        bounds = ["" if limit is None else call.builder.scalar(limit, dtype) for limit in limits]
        return call.builder.add("Clip", call.tensor("self", dtype), *bounds)

    return rule


def _relu6(call: Call) -> str:
    return call.builder.add("Clip", call.tensor("self"), *(call.builder.scalar(v, call.result.dtype) for v in (0, 6)))


def _leaky_relu(call: Call) -> str:
    return call.builder.add("LeakyRelu", call.tensor("self"), alpha=float(call["negative_slope"]))


def _elu(call: Call) -> str:
    call.require(call["scale"] == 1 and call["input_scale"] == 1, "a scale")
    return call.builder.add("Elu", call.tensor("self"), alpha=float(call["alpha"]))


def _celu(call: Call) -> str:
    return call.builder.add("Celu", call.tensor("self"), alpha=float(call["alpha"]))


def _log_sigmoid(call: Call) -> str:
    """log σ(x) = −softplus(−x)"""
    builder = call.builder
    return builder.add("Neg", builder.add("Softplus", builder.add("Neg", call.tensor("self"))))


def _selu(call: Call) -> str:
    return call.builder.add("Selu", call.tensor("self"))


def _softplus(call: Call) -> str:
    call.require(call["beta"] == 1 and call["threshold"] == 20, "a beta or a threshold")
    return call.builder.add("Softplus", call.tensor("self"))


def _prelu(call: Call) -> str:
    slopes = call.constant("weight").reshape(-1, *[1] * (call.rank("self") - 2))
    return call.builder.add("PRelu", call.tensor("self"), call.operand(slopes, call.raw["weight"]))


def _square(call: Call) -> str:
    value = call.tensor("self")
    return call.builder.add("Mul", value, value)


def _reciprocal_root(call: Call) -> str:
    return call.builder.add("Reciprocal", call.builder.add("Sqrt", call.tensor("self")))


def _power(call: Call) -> str:
    exponent = call["exponent"]
    if exponent == 2 and not isinstance(exponent, torch.Tensor):
        return _square(call)
    dtype = call.result.dtype
    return call.builder.add("Pow", call.tensor("self", dtype), call.tensor("exponent", dtype))


def _add_product(call: Call) -> str:
    dtype = call.result.dtype
    product = call.builder.add("Mul", call.tensor("tensor1", dtype), call.tensor("tensor2", dtype))
    if call["value"] != 1:
        product = call.builder.add("Mul", product, call.builder.scalar(call["value"], dtype))
    return call.builder.add("Add", call.tensor("self", dtype), product)


def _where(call: Call) -> str:
    dtype = call.result.dtype
    return call.builder.add("Where", call.tensor("condition"), call.tensor("self", dtype), call.tensor("other", dtype))


def _masked_fill(call: Call) -> str:
    dtype = call.result.dtype
    return call.builder.add("Where", call.tensor("mask"), call.tensor("value", dtype), call.tensor("self", dtype))


def _not(call: Call) -> str:
    call.require(call.result.dtype is torch.bool, "bits of whole numbers")
    return call.builder.add("Not", call.tensor("self"))


def _gated(call: Call) -> str:
    first, second = call.builder.add("Split", call.tensor("self"), outputs=2, axis=call.axis("dim"), num_outputs=2)
    return call.builder.add("Mul", first, call.builder.add("Sigmoid", second))


def _convert(call: Call) -> object:
    """A conversion of type; of device or layout there is nothing to say."""
    if call.raw["self"].meta["value"].dtype == call.result.dtype:
        return call["self"]
    return call.cast(call.tensor("self"), call.result.dtype)


def _unchanged(call: Call) -> object:
    return call["self"]


def _inactive_dropout(call: Call) -> object:
    call.require(not call["train"], "dropout that is active")
    return call["input" if "input" in call.values else "self"]


RULES = {
    **{name: _unary(operator) for name, operator in _SAME_NAME.items()},
    **{name: _comparison(operator) for name, operator in _COMPARISONS.items()},
    **{
        name: _binary(operator)
        for name, operator in {"add": "Add", "sub": "Sub", "mul": "Mul", "maximum": "Max", "minimum": "Min"}.items()
    },
    "ne": _unequal,
    "rsub": _reversed_subtraction,
    **dict.fromkeys(("div", "true_divide"), _division),
    "silu": _silu,
    "gelu": _gelu,
    "hardsigmoid": _hard_sigmoid,
    "hardtanh": _clip("min_val", "max_val"),
    **dict.fromkeys(("clamp", "clip"), _clip("min", "max")),
    "clamp_min": _clip("min", ""),
    "clamp_max": _clip("", "max"),
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "log_sigmoid": _log_sigmoid,
    "softplus": _softplus,
    "prelu": _prelu,
    "square": _square,
    "rsqrt": _reciprocal_root,
    "pow": _power,
    "addcmul": _add_product,
    "where": _where,
    "masked_fill": _masked_fill,
    "bitwise_not": _not,
    "glu": _gated,
    "to": _convert,
    "_to_copy": _convert,
    "type_as": _convert,
    "float": _convert,
    **dict.fromkeys(("contiguous", "clone", "detach", "alias", "lift_fresh"), _unchanged),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _inactive_dropout),
}
