"""Matrix products and attention: free axes keep their labels, contracted axes are tied.

A product of activations sums over the channels that both sides have in common, like a layer over those that its weight
reads: removing one from both is what a reference sees that is blind to it on one side.
"""

from __future__ import annotations

import math

from core.analysis.context import Call, Read, Recorder, UnlabelledOperator
from core.analysis.handlers import einsum
from core.analysis.handlers.elementwise import broadcast
from core.analysis.values import Value

_CONTRACTED = "contracts with an axis that cannot be sliced"


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
    product = _product(recorder, call, call[names[0]], call[names[1]], names[0])
    return broadcast(recorder, call, [call["self"], product], call.shape)


def matmul(recorder: Recorder, call: Call) -> Value:
    """a [..., n, k] @ b [..., k, m] (matmul, mm, bmm)."""
    first, second = call["self"], call["mat2"] if call.get("mat2") is not None else call["other"]
    return _product(recorder, call, first, second, "self")


def attention(recorder: Recorder, call: Call) -> Value:
    """softmax(scale · q kᵀ + mask) v with q [..., L, E], k [..., S, E], v [..., S, V] → [..., L, V].

    E is tied between q and k and summed over; the scale stays what it was. The softmax runs over S.
    """
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    rank = query.rank
    _product_macs(recorder, [(query, range(rank)), (key, [rank - 2])])
    _product_macs(recorder, [(query, range(rank - 1)), (value, [rank - 2, rank - 1])])
    if call["enable_gqa"] or not rank == key.rank == value.rank:
        raise UnlabelledOperator("attention with grouped queries")
    if query.shape[-1] > 1:
        recorder.tie(query.vector(-1), key.vector(-1), _CONTRACTED)
    recorder.read("query", rank - 1, query.vector(-1))
    if query.vector(-1) is not None and call["scale"] is None:
        recorder.rewrite(lambda edit: edit.set("scale", query.shape[-1] ** -0.5))
    holders = [("key", key, rank - 2), ("value", value, rank - 2)]
    operands, shape = [_batch_part(one) for one in (query, key, value)], (*query.shape[:-1], key.shape[-2])
    rows = query.vector(-2)
    if mask is not None:
        # Heads and query positions of the mask are those of the scores that it is added to.
        operands.append(_batch_part(mask))
        if mask.shape[-1] > 1:
            holders.append(("attn_mask", mask, mask.rank - 1))
        if mask.rank > 1 and mask.shape[-2] > 1:
            rows = recorder.join([rows, mask.vector(-2)], "attention mask")
    batch = broadcast(recorder, call, operands, shape[:-2])
    columns = recorder.join([one.vector(axis) for _, one, axis in holders], "attention mask")
    if call["is_causal"]:
        recorder.freeze(rows, "causal attention")
        recorder.freeze(columns, "causal attention")
    reads = [Read(name, axis, one.vector(axis)) for name, one, axis in holders if one.vector(axis) is not None]
    recorder.run_over(reads, "softmax runs over this axis")
    return Value(call.shape, {**batch.labels, rank - 2: rows, rank - 1: value.vector(-1)})


def _product(recorder: Recorder, call: Call, first: Value, second: Value, argument: str) -> Value:
    """a [..., n, k] @ b [..., k, m]; `argument` is the name of a."""
    if first.rank < 2 or second.rank < 2:
        raise UnlabelledOperator("product with a vector")
    shape = call.shape
    outputs = broadcast(recorder, call, [_batch_part(first), _batch_part(second)], shape[:-2])
    labels = {**outputs.labels, len(shape) - 2: first.vector(-2), len(shape) - 1: second.vector(-1)}
    result = Value(shape, {axis: vector for axis, vector in labels.items() if vector is not None})
    _product_macs(recorder, [(result, range(result.rank)), (first, [first.rank - 1])])
    if first.shape[-1] > 1:
        recorder.tie(first.vector(-1), second.vector(-2), _CONTRACTED)
    recorder.read(argument, first.rank - 1, first.vector(-1))
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
    **einsum.HANDLERS,
}
