"""Matrix products. A product with a constant matrix is a layer, with its weight transposed to [out, in]."""

from __future__ import annotations

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Computed, Known, Value


def gemm(builder: Builder, node: OnnxNode) -> Value:
    """α · A B + β · C, A and B perhaps transposed."""
    a, b, c = node.input(0), node.input(1), node.optional(2)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if node.get("transA", 0):
        a.require_whole_images([0], "contracts")
        a = builder.call(aten.permute.default, a, [1, 0])
    scaled = c if c is None or beta == 1.0 else builder.call(aten.mul.Tensor, c, beta)
    if isinstance(a, Computed) and isinstance(b, Known):
        weight = b if node.get("transB", 0) else _transposed(b)
        if alpha != 1.0:
            weight = Known.of(weight.one * alpha)
        outputs = weight.shape[0]
        is_bias = isinstance(scaled, Known) and scaled.fixed and scaled.shape in ((outputs,), (1, outputs))
        bias = Known.of(scaled.one.reshape(-1), scaled.name, trainable=scaled.trainable) if is_bias else None
        builder.layer(node.label, {"weight": weight, "bias": bias})
        product = builder.call(aten.linear.default, a, weight, bias)
        return product if is_bias or scaled is None else builder.call(aten.add.Tensor, product, scaled)
    b = builder.call(aten.permute.default, b, [1, 0]) if node.get("transB", 0) else b
    product = builder.call(aten.matmul.default, a, b)
    product = product if alpha == 1.0 else builder.call(aten.mul.Tensor, product, alpha)
    return product if scaled is None else builder.call(aten.add.Tensor, product, scaled)


def matmul(builder: Builder, node: OnnxNode) -> Value:
    a, b = node.input(0), node.input(1)
    if isinstance(a, Computed) and isinstance(b, Known) and b.rank == 2 and a.rank >= 2 and b.fixed:
        weight = _transposed(b)
        builder.layer(node.label, {"weight": weight})
        return builder.call(aten.linear.default, a, weight)
    return builder.call(aten.matmul.default, a, b)


def _transposed(matrix: Known) -> Known:
    return Known.of(matrix.one.t().contiguous(), matrix.name, trainable=matrix.trainable)


def einsum(builder: Builder, node: OnnxNode) -> Value:
    operands = [node.input(index) for index in range(len(node.operands))]
    return builder.call(aten.einsum.default, node.get("equation", ""), operands)


HANDLERS = {"Gemm": gemm, "MatMul": matmul, "Einsum": einsum}
