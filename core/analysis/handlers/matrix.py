"""Matrix products: free axes keep their labels, contracted axes are tied (linear) or frozen (products of activations)."""

from __future__ import annotations

import math

from core.analysis.context import Call, Recorder, UnlabelledOperator
from core.analysis.handlers.elementwise import broadcast
from core.analysis.values import Labels, Value

_CONTRACTED = "a product of activations contracts over this axis"


def linear(recorder: Recorder, call: Call) -> Value:
    """x [..., I], weight [O, I], bias [O] → [..., O]."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    _product_macs(recorder, [(x, range(x.rank - 1)), (weight, range(weight.rank))])
    if weight.rank != 2:
        raise UnlabelledOperator("linear with a weight that is not a matrix")
    if weight.shape[1] > 1:
        recorder.contract(x.vector(-1), weight.vector(1))
    recorder.read("weight", 1, weight.vector(1))
    if bias is not None and bias.shape[0] > 1:
        recorder.tie(bias.vector(0), weight.vector(0), "bias that cannot be sliced")
    labels = {axis: vector for axis, vector in x.labels.items() if axis != x.rank - 1}
    return Value(call.shape, {**labels, x.rank - 1: weight.vector(0)})


def addmm(recorder: Recorder, call: Call) -> Value:
    """bias + a @ b, for matrices and batches of them."""
    names = ("mat1", "mat2") if call.operator == "addmm" else ("batch1", "batch2")
    product = _product(recorder, call, call[names[0]], call[names[1]])
    return broadcast(recorder, call, [call["self"], product], call.shape)


def matmul(recorder: Recorder, call: Call) -> Value:
    """a [..., n, k] @ b [..., k, m] (matmul, mm, bmm)."""
    first, second = call["self"], call["mat2"] if call.get("mat2") is not None else call["other"]
    return _product(recorder, call, first, second)


def attention(recorder: Recorder, call: Call) -> Value:
    """softmax(q kᵀ) v with q [..., L, E], k [..., S, E], v [..., S, V] → [..., L, V]."""
    query, key, value = call["query"], call["key"], call["value"]
    rank = query.rank
    batch = range(rank - 2)
    _product_macs(recorder, [(query, range(rank)), (key, [rank - 2])])
    _product_macs(recorder, [(query, range(rank - 1)), (value, [rank - 2, rank - 1])])
    if call["enable_gqa"] or not rank == key.rank == value.rank:
        raise UnlabelledOperator("attention with grouped queries")
    for operand, axes in ((query, [-1]), (key, [-2, -1]), (value, [-2])):
        recorder.freeze_axes(operand, axes, _CONTRACTED)
    mask = call["attn_mask"]
    if mask is not None:
        recorder.freeze_axes(mask, range(mask.rank), "attention mask")
        recorder.freeze_axes(query, range(rank - 1), "attention mask")
    labels: dict[int, Labels | None] = {}
    for axis in batch:
        vectors = [operand.vector(axis) for operand in (query, key, value) if operand.shape[axis] > 1]
        labels[axis] = recorder.join(vectors, "attention over heads that cannot be sliced")
    return Value(call.shape, {**labels, rank - 2: query.vector(-2), rank - 1: value.vector(-1)})


def _product(recorder: Recorder, call: Call, first: Value, second: Value) -> Value:
    if first.rank < 2 or second.rank < 2:
        raise UnlabelledOperator("product with a vector")
    shape = call.shape
    outputs = broadcast(
        recorder,
        call,
        [_batch_part(first), _batch_part(second)],
        shape[:-2],
    )
    labels = {**outputs.labels, len(shape) - 2: first.vector(-2), len(shape) - 1: second.vector(-1)}
    result = Value(shape, {axis: vector for axis, vector in labels.items() if vector is not None})
    _product_macs(recorder, [(result, range(result.rank)), (first, [first.rank - 1])])
    recorder.freeze(first.vector(-1), _CONTRACTED)
    recorder.freeze(second.vector(-2), _CONTRACTED)
    return result


def _batch_part(value: Value) -> Value:
    return Value(value.shape[:-2], {axis: vector for axis, vector in value.labels.items() if axis < value.rank - 2})


def _product_macs(recorder: Recorder, parts: list[tuple[Value, object]]) -> None:
    """Product of the sizes of the given axes."""
    constant, vectors = 1, []
    for value, axes in parts:
        constant *= math.prod(value.shape[axis] for axis in axes if axis not in value.labels)
        vectors += [value.labels[axis] for axis in axes if axis in value.labels]
    recorder.macs(constant, vectors)


HANDLERS = {
    "linear": linear,
    "addmm": addmm,
    "baddbmm": addmm,
    **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    "scaled_dot_product_attention": attention,
}
