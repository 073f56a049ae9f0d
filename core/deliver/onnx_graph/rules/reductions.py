"""Operators that look at many elements at once: sums, norms, normalisation by what is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core.deliver.onnx_graph.call import Call


def _reduction(operator: str) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        return reduce(call, operator)

    return rule


def reduce(call: Call, operator: str) -> str:
    """The reduction over the call's axes."""
    call.require("dim" in call.values, "a reduction over the batch")
    axes, keep = call.axes("dim"), int(bool(call.get("keepdim")))
    call.require(0 not in axes, "a reduction over the batch")
    value = call.tensor("self", call.result.dtype)
    return call.builder.add(operator, value, call.builder.integers(axes), keepdims=keep)


def _position_of_maximum(call: Call) -> str:
    call.require(call.given("dim"), "a reduction over the batch")
    return call.builder.add("ArgMax", call.tensor("self"), axis=call.axis("dim"), keepdims=int(bool(call["keepdim"])))


def _vector_norm(call: Call) -> str:
    call.require(call["ord"] in (1, 2), f"a norm of order {call['ord']}")
    return reduce(call, "ReduceL2" if call["ord"] == 2 else "ReduceL1")


def _norm(call: Call) -> str:
    call.require(call["p"] in (1, 2, None), f"a norm of order {call['p']}")
    return reduce(call, "ReduceL1" if call["p"] == 1 else "ReduceL2")


def _deviation(call: Call) -> str:
    return call.builder.add("Sqrt", _variance(call))


def _variance(call: Call) -> str:
    """mean((x − mean(x))²), over n − correction where that is asked for."""
    call.require("dim" in call.values, "a reduction over the batch")
    axes, builder = call.axes("dim"), call.builder
    call.require(0 not in axes, "a reduction over the batch")
    where, value = builder.integers(axes), call.tensor("self")
    difference = builder.add("Sub", value, builder.add("ReduceMean", value, where, keepdims=1))
    squares = builder.add("Mul", difference, difference)
    mean = builder.add("ReduceMean", squares, where, keepdims=int(bool(call["keepdim"])))
    correction = int(call["unbiased"]) if "unbiased" in call.values else call["correction"]
    correction = 1 if correction is None else correction
    if correction == 0:
        return mean
    count = 1
    for axis in axes:
        count *= call.shape("self")[axis]
    return builder.add("Mul", mean, builder.scalar(count / (count - correction), call.result.dtype))


def _softmax(operator: str) -> Callable[[Call], str]:
    def rule(call: Call) -> str:
        return call.builder.add(operator, call.tensor("self", call.result.dtype), axis=call.axis("dim"))

    return rule


def _cumulative_sum(call: Call) -> str:
    value = call.tensor("self", call.result.dtype)
    return call.builder.add("CumSum", value, call.builder.tensor(torch.tensor(call.axis("dim")), "axis"))


def _layer_norm(call: Call) -> str:
    sizes = call["normalized_shape"]
    call.require(all(isinstance(size, int) for size in sizes), "a live shape")
    weight = call.tensor("weight") if call.given("weight") else _ones(call, sizes)
    bias = call.tensor("bias") if call.given("bias") else ""
    return call.builder.add(
        "LayerNormalization", call.tensor("input"), weight, bias, axis=-len(sizes), epsilon=float(call["eps"])
    )


def _ones(call: Call, sizes: Any) -> str:
    return call.builder.tensor(torch.ones(*sizes, dtype=call.result.dtype), f"{call.node.name}.weight")


def _instance_norm(call: Call) -> str:
    call.require(bool(call["use_input_stats"]), "normalisation by stored statistics")
    channels, dtype, builder = call.shape("input")[1], call.result.dtype, call.builder
    vectors = []
    for name, default in (("weight", 1.0), ("bias", 0.0)):
        if call.given(name):
            vectors.append(call.tensor(name))
        else:
            vectors.append(builder.tensor(torch.full((channels,), default, dtype=dtype), f"{call.node.name}.{name}"))
    return builder.add("InstanceNormalization", call.tensor("input"), *vectors, epsilon=float(call["eps"]))


def _group_norm(call: Call) -> str:
    """As an instance norm over images whose channels are the groups, then scale and shift per channel."""
    groups, shape, dtype = call["num_groups"], call.shape("input"), call.result.dtype
    builder = call.builder
    grouped = builder.add("Reshape", call.tensor("input"), builder.integers([0, groups, -1]))
    ones = builder.tensor(torch.ones(groups, dtype=dtype), f"{call.node.name}.ones")
    zeros = builder.tensor(torch.zeros(groups, dtype=dtype), f"{call.node.name}.zeros")
    normed = builder.add("InstanceNormalization", grouped, ones, zeros, epsilon=float(call["eps"]))
    result = builder.add("Reshape", normed, builder.integers([-1, *shape[1:]]))
    for name, operator in (("weight", "Mul"), ("bias", "Add")):
        if call.given(name):
            vector = call.constant(name).reshape(-1, *[1] * (len(shape) - 2))
            result = builder.add(operator, result, call.operand(vector, call.raw[name]))
    return result


RULES = {
    "mean": _reduction("ReduceMean"),
    "sum": _reduction("ReduceSum"),
    "amax": _reduction("ReduceMax"),
    "amin": _reduction("ReduceMin"),
    "argmax": _position_of_maximum,
    "linalg_vector_norm": _vector_norm,
    "norm": _norm,
    "var": _variance,
    "std": _deviation,
    "softmax": _softmax("Softmax"),
    "_softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "cumsum": _cumulative_sum,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
}
