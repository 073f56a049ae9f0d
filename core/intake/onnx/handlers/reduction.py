"""Reductions over axes, arguments of extrema, and the largest k."""

from __future__ import annotations

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Unsupported, Value

_WHOLE = {
    "ReduceMean": aten.mean.dim,
    "ReduceSum": aten.sum.dim_IntList,
    "ReduceMax": aten.amax.default,
    "ReduceMin": aten.amin.default,
    "ReduceLogSumExp": aten.logsumexp.default,
}
_COMPOSED = ("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceProd")


def reduce(builder: Builder, node: OnnxNode) -> Value:
    x, keep = node.input(0), bool(node.get("keepdims", 1))
    given = node.integers("axes", 1)
    if not given and node.get("noop_with_empty_axes", 0):
        if node.operator in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
            return x
        raise Unsupported("noop_with_empty_axes")
    axes = sorted({x.axis(axis) for axis in given}) if given else list(range(x.rank))
    x.require_whole_images(axes, "reduces")
    name = node.operator
    if name in _WHOLE:
        return builder.call(_WHOLE[name], x, axes, keep)
    if name == "ReduceProd":
        for axis in reversed(axes):
            x = builder.call(aten.prod.dim_int, x, axis, keep)
        return x
    if name == "ReduceSumSquare":
        return builder.call(aten.sum.dim_IntList, builder.call(aten.mul.Tensor, x, x), axes, keep)
    if name in ("ReduceL1", "ReduceL2"):
        return builder.call(aten.linalg_vector_norm.default, x, int(name[-1]), axes, keep)
    return builder.call(aten.log.default, builder.call(aten.sum.dim_IntList, x, axes, keep))


def extreme_index(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    if node.get("select_last_index", 0):
        raise Unsupported("select_last_index")
    axis = x.axis(node.get("axis", 0))
    x.require_whole_images([axis], "runs")
    target = aten.argmax.default if node.operator == "ArgMax" else aten.argmin.default
    return builder.call(target, x, axis, bool(node.get("keepdims", 1)))


def top_k(builder: Builder, node: OnnxNode) -> tuple[Value, ...]:
    x = node.input(0)
    count = node.integers("k", 1)
    if count is None or len(count) != 1:
        raise Unsupported("no k is given")
    axis = x.axis(node.get("axis", -1))
    x.require_whole_images([axis], "runs")
    return builder.call(aten.topk.default, x, count[0], axis, bool(node.get("largest", 1)), bool(node.get("sorted", 1)))


def cumulative_sum(builder: Builder, node: OnnxNode) -> Value:
    x, axis = node.input(0), node.integers("axis", 1)
    if axis is None:
        raise Unsupported("an axis that is computed from the input")
    x.require_whole_images(axis, "runs")
    along = x.axis(axis[0])
    turned = builder.call(aten.flip.default, x, [along]) if node.get("reverse", 0) else x
    result = builder.call(aten.cumsum.default, turned, along)
    if node.get("exclusive", 0):
        result = builder.call(aten.sub.Tensor, result, turned)
    return builder.call(aten.flip.default, result, [along]) if node.get("reverse", 0) else result


HANDLERS = {
    **dict.fromkeys((*_WHOLE, *_COMPOSED), reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), extreme_index),
    "TopK": top_k,
    "CumSum": cumulative_sum,
}
