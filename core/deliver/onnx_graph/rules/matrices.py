"""Products of matrices, and attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.deliver.onnx_graph.call import Call


def _linear(call: Call) -> str:
    weight, bias = call["weight"], call.tensor("bias") if call.given("bias") else ""
    if call.rank("input") == 2:
        return call.builder.add("Gemm", call.tensor("input"), call.tensor("weight"), bias, transB=1)
    if isinstance(weight, Tensor) and not call.builder.own_weights:
        transposed = call.operand(weight.T, call.raw["weight"])
    else:
        transposed = call.builder.add("Transpose", call.tensor("weight"), perm=[1, 0])
    product = call.builder.add("MatMul", call.tensor("input"), transposed)
    return call.builder.add("Add", product, bias) if bias else product


def _product(other: str) -> object:
    def rule(call: Call) -> str:
        return call.builder.add("MatMul", call.tensor("self"), call.tensor(other))

    return rule


def _added_product(first: str, second: str) -> object:
    def rule(call: Call) -> str:
        call.require(call["beta"] == 1 and call["alpha"] == 1, "a factor")
        product = call.builder.add("MatMul", call.tensor(first), call.tensor(second))
        return call.builder.add("Add", call.tensor("self"), product)

    return rule


def _einsum(call: Call) -> str:
    operands = [call.operand(value, raw) for value, raw in zip(call["tensors"], call.raw["tensors"], strict=True)]
    return call.builder.add("Einsum", *operands, equation=call["equation"])


def _attention(call: Call) -> str:
    """softmax(q kᵀ · scale + mask) v"""
    call.require(not call["is_causal"] and call["dropout_p"] == 0 and not call.get("enable_gqa"), "an option")
    if call.given("attn_mask"):
        call.require(call.raw["attn_mask"].meta["value"].dtype.is_floating_point, "a mask of booleans")
    rank = call.rank("query")
    scale = call["scale"] if call.given("scale") else 1 / math.sqrt(call.shape("query")[-1])
    query = call.builder.add("Mul", call.tensor("query"), call.builder.scalar(scale, call.result.dtype))
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = call.builder.add("MatMul", query, call.builder.add("Transpose", call.tensor("key"), perm=order))
    if call.given("attn_mask"):
        scores = call.builder.add("Add", scores, call.tensor("attn_mask"))
    return call.builder.add("MatMul", call.builder.add("Softmax", scores, axis=-1), call.tensor("value"))


def _embedding(call: Call) -> str:
    return call.builder.add("Gather", call.tensor("weight"), call.tensor("indices", torch.int64), axis=0)


RULES = {
    "linear": _linear,
    "matmul": _product("other"),
    "bmm": _product("mat2"),
    "mm": _product("mat2"),
    "addmm": _added_product("mat1", "mat2"),
    "baddbmm": _added_product("batch1", "batch2"),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
}
