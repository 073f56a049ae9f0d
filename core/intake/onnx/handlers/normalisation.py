"""Normalisations and softmax."""

from __future__ import annotations

import math

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.handlers.shapes import reshape_to
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Unsupported, Value


def batch_norm(builder: Builder, node: OnnxNode) -> Value:
    x, scale, bias, mean, variance = (node.input(index) for index in range(5))
    if node.get("training_mode", 0) or any(node.outputs[1:]):
        raise Unsupported("training mode; export the network in evaluation mode")
    if node.get("spatial", 1) != 1:
        raise Unsupported("spatial = 0")
    builder.layer(node.label, {"weight": scale, "bias": bias, "running_mean": mean, "running_var": variance})
    momentum = 1.0 - float(node.get("momentum", 0.9))
    arguments = [x, scale, bias, mean, variance, False, round(momentum, 7), _epsilon(node), False]
    return builder.call(aten.batch_norm.default, *arguments)


def instance_norm(builder: Builder, node: OnnxNode) -> Value:
    x, scale, bias = (node.input(index) for index in range(3))
    builder.layer(node.label, {"weight": scale, "bias": bias})
    return builder.call(aten.instance_norm.default, x, scale, bias, None, None, True, 0.1, _epsilon(node), False)


def layer_norm(builder: Builder, node: OnnxNode) -> Value:
    x, scale, bias = node.input(0), node.input(1), node.optional(2)
    if any(node.outputs[1:]):
        raise Unsupported("the outputs Mean and InvStdDev")
    axes = range(x.axis(node.get("axis", -1)), x.rank)
    x.require_whole_images(axes, "takes statistics")
    shape = [x.shape[axis] for axis in axes]
    scale, bias = (one if one is None else _of_shape(builder, one, shape) for one in (scale, bias))
    builder.layer(node.label, {"weight": scale, "bias": bias})
    return builder.call(aten.layer_norm.default, x, shape, scale, bias, _epsilon(node), False)


def _of_shape(builder: Builder, value: Value, shape: list[int]) -> Value:
    """A scale or bias, which may be one number for several positions, with one for each."""
    if value.shape == tuple(shape):
        return value
    if len(value.shape) > len(shape):
        raise Unsupported(f"a scale or bias of shape {list(value.shape)} over the normalised shape {shape}")
    return builder.call(aten.expand.default, value, shape)


def rms_norm(builder: Builder, node: OnnxNode) -> Value:
    x, scale = node.input(0), node.input(1)
    axes = range(x.axis(node.get("axis", -1)), x.rank)
    x.require_whole_images(axes, "takes statistics")
    shape = [x.shape[axis] for axis in axes]
    scale = _of_shape(builder, scale, shape)
    builder.layer(node.label, {"weight": scale})
    return builder.call(aten.rms_norm.default, x, shape, scale, _epsilon(node))


def group_norm(builder: Builder, node: OnnxNode) -> Value:
    """Until opset 20 there is one scale per group, from 21 on one per channel."""
    x, scale, bias = (node.input(index) for index in range(3))
    groups, channels = node.get("num_groups"), x.shape[1]
    if not groups or channels % groups:
        raise Unsupported(f"num_groups {groups} over {channels} channels")
    if scale.shape == (groups,) and groups != channels:
        repeats = [channels // groups]
        scale, bias = (
            builder.call(
                aten.reshape.default, builder.call(aten.expand.default, unsqueezed, [groups, *repeats]), [channels]
            )
            for unsqueezed in (builder.call(aten.unsqueeze.default, one, 1) for one in (scale, bias))
        )
    builder.layer(node.label, {"weight": scale, "bias": bias})
    return builder.call(aten.group_norm.default, x, groups, scale, bias, _epsilon(node), False)


def local_response_norm(builder: Builder, node: OnnxNode) -> Value:
    """x / (k + α/n · Σ x²)^β over n neighbouring channels (Krizhevsky et al., 2012), the sum as an average over channels."""
    x, size = node.input(0), node.get("size")
    if x.rank != 4 or not size or size < 1:
        raise Unsupported(f"size {size} over a value with {x.rank} dimensions")
    squares = builder.call(aten.unsqueeze.default, builder.call(aten.mul.Tensor, x, x), 1)
    around = [0, 0, 0, 0, (size - 1) // 2, math.ceil((size - 1) / 2)]
    padded = builder.call(aten.constant_pad_nd.default, squares, around, 0.0)
    average = builder.call(aten.avg_pool3d.default, padded, [size, 1, 1], [1, 1, 1])
    average = builder.call(aten.squeeze.dims, average, [1])
    base = builder.call(
        aten.add.Tensor, builder.call(aten.mul.Tensor, average, node.get("alpha", 1e-4)), node.get("bias", 1.0)
    )
    return builder.call(aten.div.Tensor, x, builder.call(aten.pow.Tensor_Scalar, base, node.get("beta", 0.75)))


def lp_normalisation(builder: Builder, node: OnnxNode) -> Value:
    x, power = node.input(0), node.get("p", 2)
    axis = x.axis(node.get("axis", -1))
    x.require_whole_images([axis], "takes a norm")
    return builder.call(aten.div.Tensor, x, builder.call(aten.linalg_vector_norm.default, x, power, [axis], True))


def mean_variance_normalisation(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    axes = [x.axis(axis) for axis in node.get("axes", [0, 2, 3])]
    x.require_whole_images(axes, "takes statistics")
    centred = builder.call(aten.sub.Tensor, x, builder.call(aten.mean.dim, x, axes, True))
    variance = builder.call(aten.mean.dim, builder.call(aten.mul.Tensor, centred, centred), axes, True)
    deviation = builder.call(aten.add.Tensor, builder.call(aten.sqrt.default, variance), 1e-9)
    return builder.call(aten.div.Tensor, centred, deviation)


def softmax(builder: Builder, node: OnnxNode) -> Value:
    """Until opset 12 over all axes from `axis` on together, from 13 on over the one axis."""
    x = node.input(0)
    target = aten.log_softmax.int if node.operator == "LogSoftmax" else aten.softmax.int
    if node.opset >= 13:
        axis = x.axis(node.get("axis", -1))
        x.require_whole_images([axis], "runs")
        return builder.call(target, x, axis)
    axis = x.axis(node.get("axis", 1)) if node.get("axis", 1) != x.rank else x.rank
    x.require_whole_images(range(axis, x.rank), "runs")
    longer = [one for one in range(axis, x.rank) if x.shape[one] != 1]
    if len(longer) <= 1 and axis < x.rank:
        return builder.call(target, x, longer[0] if longer else axis)
    flat = reshape_to(builder, x, [*x.shape[:axis], math.prod(x.shape[axis:])])
    return reshape_to(builder, builder.call(target, flat, axis), list(x.shape))


def _epsilon(node: OnnxNode) -> float:
    """float32 attributes read as the decimal that they were meant to be."""
    return float(f"{node.get('epsilon', 1e-5):.7g}")


HANDLERS = {
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response_norm,
    "LpNormalization": lp_normalisation,
    "MeanVarianceNormalization": mean_variance_normalisation,
    "Softmax": softmax,
    "LogSoftmax": softmax,
}
