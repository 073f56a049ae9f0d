"""One operator as Python, written as a person would.

A printer handles a call only when it can say everything that the call says: an argument that it does not write must
have its default. Whatever no printer handles is written as the ATen call that it is, so that it is never wrong.
"""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import torch
from torch.fx import Node

from core.analysis.schema import bind, operator_name
from core.deliver.source.layout import Code, call, list_of, tuple_of
from core.deliver.source.printers import (
    Printer,
    Value,
    batch_norm,
    binary,
    channel_dropout,
    created,
    dropout,
    first_of,
    function,
    index,
    infix,
    interpolate,
    inverted,
    method,
    negative,
    new,
    power,
    select,
    size,
    sized,
    values,
)

_INFIX_FUNCTIONS = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
}


def print_call(node: Node, value: Value) -> Code:
    """The Python expression of a call; `value` writes its operands (nodes and literals)."""
    if node.target is operator.getitem:
        return f"{value(node.args[0])}[{node.args[1]}]"
    if node.target in _INFIX_FUNCTIONS:
        return binary(value(node.args[0]), _INFIX_FUNCTIONS[node.target], value(node.args[1]))
    if isinstance(node.target, torch._ops.OpOverload):
        printer = _PRINTERS.get(operator_name(node.target)) if node.target.namespace == "aten" else None
        code = printer(node, bind(node), value) if printer is not None else None
        return code if code is not None else _as_aten(node, value)
    return call(f"{node.target.__module__}.{node.target.__name__}", map(value, node.args), values(node.kwargs, value))


def literal(value: Any, of_node: Value) -> Code:
    """A constant of the graph, with the nodes inside it written by `of_node`."""
    if isinstance(value, Node):
        return of_node(value)
    if isinstance(value, (list, tuple)):
        items = [literal(item, of_node) for item in value]
        return list_of(items) if isinstance(value, list) else tuple_of(items)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if value is None or isinstance(value, (bool, int, float, torch.dtype, torch.layout, torch.memory_format)):
        return repr(value)
    raise TypeError(f"A constant of type {type(value).__name__} has no Python form.")


def _as_aten(node: Node, value: Value) -> Code:
    name, overload = node.target._schema.name.replace("::", "."), node.target._overloadname
    return call(f"torch.ops.{name}.{overload}", map(value, node.args), values(node.kwargs, value))


_CONVOLUTION = "stride padding dilation groups"
_TRANSPOSED = "stride padding output_padding groups dilation"
_REDUCTION = "dim keepdim"
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

_PRINTERS: dict[str, Printer] = {
    **{f"conv{n}d": function(f"F.conv{n}d", "input weight", f"bias {_CONVOLUTION}") for n in (1, 2, 3)},
    **{
        f"conv_transpose{n}d": function(f"F.conv_transpose{n}d", "input weight", f"bias {_TRANSPOSED}")
        for n in (1, 2, 3)
    },
    "linear": function("F.linear", "input weight", "bias"),
    "batch_norm": batch_norm,
    "layer_norm": function("F.layer_norm", "input normalized_shape", "weight bias eps"),
    "group_norm": function("F.group_norm", "input num_groups", "weight bias eps"),
    "embedding": function("F.embedding", "indices weight"),
    "prelu": function("F.prelu", "self weight"),
    **{name: dropout("F.dropout") for name in ("dropout", "dropout_")},
    **dict.fromkeys(("feature_dropout", "feature_dropout_"), channel_dropout),
    **{
        name: function(f"F.{name}", "self")
        for name in ("relu", "relu6", "selu", "mish", "silu", "hardswish", "hardsigmoid", "logsigmoid")
    },
    **{
        f"{name}_": function(f"F.{name}", "self", inplace="True")
        for name in ("relu", "relu6", "selu", "mish", "silu", "hardswish", "hardsigmoid")
    },
    "gelu": function("F.gelu", "self", "approximate"),
    "leaky_relu": function("F.leaky_relu", "self", "negative_slope"),
    "leaky_relu_": function("F.leaky_relu", "self", "negative_slope", inplace="True"),
    "hardtanh": function("F.hardtanh", "self", "min_val max_val"),
    "hardtanh_": function("F.hardtanh", "self", "min_val max_val", inplace="True"),
    "elu": function("F.elu", "self", "alpha"),
    "elu_": function("F.elu", "self", "alpha", inplace="True"),
    "softplus": function("F.softplus", "self", "beta threshold"),
    "softmax": function("F.softmax", "self", "dim"),
    "log_softmax": function("F.log_softmax", "self", "dim"),
    **{
        name: function(f"torch.{name}", "self")
        for name in (
            *("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos", "erf", "reciprocal"),
            *("floor", "ceil", "round", "sign"),
        )
    },
    "pad": function("F.pad", "self pad", "mode value"),
    "constant_pad_nd": function("F.pad", "self pad", "value"),
    "max_pool1d": function("F.max_pool1d", "self kernel_size", "stride padding dilation ceil_mode"),
    "max_pool2d": function("F.max_pool2d", "self kernel_size", "stride padding dilation ceil_mode"),
    "max_pool3d": function("F.max_pool3d", "self kernel_size", "stride padding dilation ceil_mode"),
    "avg_pool1d": function("F.avg_pool1d", "self kernel_size", "stride padding ceil_mode count_include_pad"),
    "avg_pool2d": function(
        "F.avg_pool2d", "self kernel_size", "stride padding ceil_mode count_include_pad divisor_override"
    ),
    "avg_pool3d": function(
        "F.avg_pool3d", "self kernel_size", "stride padding ceil_mode count_include_pad divisor_override"
    ),
    **{f"adaptive_avg_pool{n}d": function(f"F.adaptive_avg_pool{n}d", "self output_size") for n in (1, 2, 3)},
    "pixel_shuffle": function("F.pixel_shuffle", "self upscale_factor"),
    "pixel_unshuffle": function("F.pixel_unshuffle", "self downscale_factor"),
    "channel_shuffle": function("F.channel_shuffle", "self groups"),
    "scaled_dot_product_attention": function(
        "F.scaled_dot_product_attention", "query key value", "attn_mask dropout_p is_causal scale"
    ),
    "cat": function("torch.cat", "tensors", "dim"),
    "stack": function("torch.stack", "tensors", "dim"),
    "where": function("torch.where", "condition self other"),
    "maximum": function("torch.maximum", "self other"),
    "minimum": function("torch.minimum", "self other"),
    "bmm": function("torch.bmm", "self mat2"),
    "add": infix("+"),
    "sub": infix("-"),
    "rsub": infix("-", swapped=True),
    "mul": infix("*"),
    "div": first_of(infix("/"), function("torch.div", "self other", "rounding_mode")),
    "matmul": infix("@"),
    **{name: infix(symbol) for name, symbol in _COMPARISONS.items()},
    "bitwise_not": inverted,
    "logical_not": function("torch.logical_not", "self"),
    "addcmul": function("torch.addcmul", "self tensor1 tensor2", "value"),
    "einsum": function("torch.einsum", "equation tensors"),
    "linalg_vector_norm": function("torch.linalg.vector_norm", "self", "ord dim keepdim dtype"),
    "glu": function("F.glu", "self", "dim"),
    "neg": negative,
    "pow": power,
    "add_": method("add_", "other", "alpha"),
    "sub_": method("sub_", "other", "alpha"),
    "mul_": method("mul_", "other"),
    "div_": method("div_", "other", "rounding_mode"),
    "copy_": method("copy_", "src"),
    "fill_": method("fill_", "value"),
    "zero_": method("zero_"),
    "masked_fill": method("masked_fill", "mask value"),
    "roll": method("roll", "shifts", "dims"),
    "flip": method("flip", "dims"),
    "cumsum": method("cumsum", "dim", "dtype"),
    "swapaxes": method("swapaxes", "axis0 axis1"),
    "t": method("t"),
    **{name: method(name, "other") for name in ("expand_as", "reshape_as", "view_as", "type_as")},
    "to": method("to", "dtype"),
    "zeros": created("torch.zeros", "size"),
    "ones": created("torch.ones", "size"),
    "full": created("torch.full", "size fill_value"),
    "arange": created("torch.arange", "start end step"),
    **{name: new(name) for name in ("new_zeros", "new_ones")},
    "clamp": method("clamp", "", "min max"),
    "clamp_min": method("clamp", "", "min"),
    "clamp_max": method("clamp", "", "max"),
    "mean": method("mean", "", _REDUCTION),
    "sum": method("sum", "", f"{_REDUCTION} dtype"),
    "amax": method("amax", "", _REDUCTION),
    "amin": method("amin", "", _REDUCTION),
    "flatten": method("flatten", "start_dim", "end_dim"),
    "unflatten": method("unflatten", "dim sizes"),
    "transpose": method("transpose", "dim0 dim1"),
    "unsqueeze": method("unsqueeze", "dim"),
    "squeeze": method("squeeze", "", "dim"),
    "chunk": method("chunk", "chunks", "dim"),
    "split": method("split", "split_size", "dim"),
    "split_with_sizes": method("split", "split_sizes", "dim"),
    "unbind": method("unbind", "", "dim"),
    "contiguous": method("contiguous"),
    "clone": method("clone"),
    "view": sized("view", "size"),
    "reshape": sized("reshape", "shape"),
    "permute": sized("permute", "dims"),
    "expand": sized("expand", "size"),
    "repeat": sized("repeat", "repeats"),
    "select": select,
    "index": index,
    **{f"upsample_nearest{n}d": interpolate("nearest") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": interpolate("nearest-exact") for n in (1, 2, 3)},
    "upsample_linear1d": interpolate("linear"),
    "upsample_bilinear2d": interpolate("bilinear"),
    "upsample_trilinear3d": interpolate("trilinear"),
    "upsample_bicubic2d": interpolate("bicubic"),
    "sym_size": size,
}
