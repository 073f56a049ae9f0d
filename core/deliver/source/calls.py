"""One operator as Python, written as a person would.

A printer handles a call only when it can say everything that the call says: an argument that it does not write must
have its default. Whatever no printer handles is written as the ATen call that it is, so that it is never wrong.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from core.analysis.schema import bind, operator_name
from core.deliver.source.layout import Code, call, list_of, tuple_of

Value = Callable[[Any], Code]
Printer = Callable[[Node, Mapping[str, Any], Value], Code | None]

_INFIX_FUNCTIONS = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
}
# Sizes of a window or an image: [2, 2] is written 2.
_SPATIAL = {"kernel_size", "stride", "padding", "dilation", "output_size", "output_padding"}


def print_call(node: Node, value: Value) -> Code:
    """The Python expression of a call; `value` writes its operands (nodes and literals)."""
    if node.target is operator.getitem:
        return f"{value(node.args[0])}[{node.args[1]}]"
    if node.target in _INFIX_FUNCTIONS:
        return _binary(value(node.args[0]), _INFIX_FUNCTIONS[node.target], value(node.args[1]))
    if isinstance(node.target, torch._ops.OpOverload):
        printer = _PRINTERS.get(operator_name(node.target)) if node.target.namespace == "aten" else None
        code = printer(node, bind(node), value) if printer is not None else None
        return code if code is not None else _as_aten(node, value)
    return call(f"{node.target.__module__}.{node.target.__name__}", map(value, node.args), _values(node.kwargs, value))


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
    return call(f"torch.ops.{name}.{overload}", map(value, node.args), _values(node.kwargs, value))


def _values(arguments: Mapping[str, Any], value: Value) -> dict[str, Code]:
    return {name: value(item) for name, item in arguments.items()}


def _defaults(node: Node) -> dict[str, Any]:
    return {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}


def _only(node: Node, bound: Mapping[str, Any], written: Sequence[str]) -> bool:
    """Whether every argument beside the written ones has its default."""
    defaults = _defaults(node)
    return all(name in written or (name in defaults and bound[name] == defaults[name]) for name in bound)


def _written(name: str, item: Any, value: Value) -> Code:
    sizes = isinstance(item, (list, tuple)) and len(set(item)) == 1
    if sizes and (name in _SPATIAL or (name == "dim" and len(item) == 1)):
        item = item[0]
    elif isinstance(item, list) and not any(isinstance(part, Node) and _is_tensor(part) for part in item):
        item = tuple(item)
    return value(item)


def _is_tensor(node: Node) -> bool:
    return hasattr(node.meta.get("value"), "shape")


def _function(callee: str, positional: str, keywords: str = "", **fixed: str) -> Printer:
    """`callee(positional…, keyword=…)`, keywords only where they differ from the operator's defaults.

    Both are argument names of the operator's schema, parted by spaces; `fixed` is written as it stands.
    """
    names, optional = positional.split(), keywords.split()

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if not set(names) <= bound.keys() or not _only(node, bound, [*names, *optional]):
            return None
        defaults = _defaults(node)
        given = {
            name: _written(name, bound[name], value)
            for name in optional
            if name in bound and (name not in defaults or bound[name] != defaults[name])
        }
        return call(callee, [_written(name, bound[name], value) for name in names], {**given, **fixed})

    return printer


def _method(name: str, positional: str = "", keywords: str = "") -> Printer:
    """`x.name(…)`, where x is the operator's `self`."""
    as_function = _function(name, positional, keywords)

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        rest = {key: item for key, item in bound.items() if key != "self"}
        code = as_function(node, rest, value)
        return None if code is None else call(f"{value(bound['self'])}.{name}", code.items)

    return printer


def _sized(name: str, sizes: str) -> Printer:
    """`x.view(2, 3)`: the sizes are written without brackets."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if not _only(node, bound, ["self", sizes]):
            return None
        return call(f"{value(bound['self'])}.{name}", [value(size) for size in bound[sizes]])

    return printer


def _infix(symbol: str, *, swapped: bool = False) -> Printer:
    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if not _only(node, bound, ["self", "other"]):
            return None
        left, right = value(bound["self"]), value(bound["other"])
        return _binary(right, symbol, left) if swapped else _binary(left, symbol, right)

    return printer


def _binary(left: Code, symbol: str, right: Code) -> str:
    return f"{left} {symbol} {right}"


def _power(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    if not isinstance(bound["exponent"], (int, float)) or not isinstance(bound["self"], Node):
        return None
    return f"{value(bound['self'])}**{value(bound['exponent'])}"


def _negative(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    return f"-{value(bound['self'])}"


def _select(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    meta = bound["self"].meta.get("value")
    if not hasattr(meta, "shape"):
        return None
    before = bound["dim"] % len(meta.shape)
    return f"{value(bound['self'])}[{', '.join([':'] * before + [str(value(bound['index']))])}]"


def _index(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    indices = [":" if index is None else str(value(index)) for index in bound["indices"]]
    return f"{value(bound['self'])}[{', '.join(indices)}]"


def _interpolate(mode: str) -> Printer:
    """The operators that `F.interpolate` calls take either a size or scale factors."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if node.target._overloadname != "vec":
            return None
        size, scales = bound["output_size"], bound["scale_factors"]
        keywords: dict[str, Code] = {}
        if size is not None:
            keywords["size"] = value(tuple(size))
        if scales is not None:
            keywords["scale_factor"] = value(scales[0] if len(set(scales)) == 1 else tuple(scales))
        if mode != "nearest":
            keywords["mode"] = json.dumps(mode)
        if bound.get("align_corners"):
            keywords["align_corners"] = "True"
        return call("F.interpolate", [value(bound["input"])], keywords)

    return printer


def _size(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    return f"{value(bound['self'])}.size({bound['dim']})" if "dim" in bound else None


def _dropout(callee: str) -> Printer:
    """Exported in eval mode; written so that training mode drops again."""

    def printer(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
        if bound["train"]:
            return None
        in_place = "self" in bound
        keywords = {"p": value(bound["p"]), "training": "self.training", **({"inplace": "True"} if in_place else {})}
        return call(callee, [value(bound["self" if in_place else "input"])], keywords)

    return printer


def _channel_dropout(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    rank = len(node.meta["value"].shape) - 2
    return _dropout(f"F.dropout{rank}d")(node, bound, value) if rank in (1, 2, 3) else None


def _batch_norm(node: Node, bound: Mapping[str, Any], value: Value) -> Code | None:
    statistics = bound["running_mean"], bound["running_var"]
    if None in statistics and not bound["training"]:
        return None
    affine = {name: value(bound[name]) for name in ("weight", "bias") if bound[name] is not None}
    keywords = {
        **affine,
        "training": "True" if bound["training"] else "self.training",
        "momentum": value(bound["momentum"]),
        "eps": value(bound["eps"]),
    }
    return call("F.batch_norm", [value(bound["input"]), *map(value, statistics)], keywords)


_CONVOLUTION = "stride padding dilation groups"
_TRANSPOSED = "stride padding output_padding groups dilation"
_REDUCTION = "dim keepdim"

_PRINTERS: dict[str, Printer] = {
    **{f"conv{n}d": _function(f"F.conv{n}d", "input weight", f"bias {_CONVOLUTION}") for n in (1, 2, 3)},
    **{
        f"conv_transpose{n}d": _function(f"F.conv_transpose{n}d", "input weight", f"bias {_TRANSPOSED}")
        for n in (1, 2, 3)
    },
    "linear": _function("F.linear", "input weight", "bias"),
    "batch_norm": _batch_norm,
    "layer_norm": _function("F.layer_norm", "input normalized_shape", "weight bias eps"),
    "group_norm": _function("F.group_norm", "input num_groups", "weight bias eps"),
    "embedding": _function("F.embedding", "indices weight"),
    "prelu": _function("F.prelu", "self weight"),
    **{name: _dropout("F.dropout") for name in ("dropout", "dropout_")},
    **dict.fromkeys(("feature_dropout", "feature_dropout_"), _channel_dropout),
    **{
        name: _function(f"F.{name}", "self")
        for name in ("relu", "relu6", "selu", "mish", "silu", "hardswish", "hardsigmoid", "logsigmoid")
    },
    **{
        f"{name}_": _function(f"F.{name}", "self", inplace="True")
        for name in ("relu", "relu6", "selu", "mish", "silu", "hardswish", "hardsigmoid")
    },
    "gelu": _function("F.gelu", "self", "approximate"),
    "leaky_relu": _function("F.leaky_relu", "self", "negative_slope"),
    "leaky_relu_": _function("F.leaky_relu", "self", "negative_slope", inplace="True"),
    "hardtanh": _function("F.hardtanh", "self", "min_val max_val"),
    "hardtanh_": _function("F.hardtanh", "self", "min_val max_val", inplace="True"),
    "elu": _function("F.elu", "self", "alpha"),
    "elu_": _function("F.elu", "self", "alpha", inplace="True"),
    "softplus": _function("F.softplus", "self", "beta threshold"),
    "softmax": _function("F.softmax", "self", "dim"),
    "log_softmax": _function("F.log_softmax", "self", "dim"),
    **{
        name: _function(f"torch.{name}", "self")
        for name in ("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos", "erf", "reciprocal")
    },
    "pad": _function("F.pad", "self pad", "mode value"),
    "constant_pad_nd": _function("F.pad", "self pad", "value"),
    "max_pool1d": _function("F.max_pool1d", "self kernel_size", "stride padding dilation ceil_mode"),
    "max_pool2d": _function("F.max_pool2d", "self kernel_size", "stride padding dilation ceil_mode"),
    "max_pool3d": _function("F.max_pool3d", "self kernel_size", "stride padding dilation ceil_mode"),
    "avg_pool1d": _function("F.avg_pool1d", "self kernel_size", "stride padding ceil_mode count_include_pad"),
    "avg_pool2d": _function(
        "F.avg_pool2d", "self kernel_size", "stride padding ceil_mode count_include_pad divisor_override"
    ),
    "avg_pool3d": _function(
        "F.avg_pool3d", "self kernel_size", "stride padding ceil_mode count_include_pad divisor_override"
    ),
    **{f"adaptive_avg_pool{n}d": _function(f"F.adaptive_avg_pool{n}d", "self output_size") for n in (1, 2, 3)},
    "pixel_shuffle": _function("F.pixel_shuffle", "self upscale_factor"),
    "pixel_unshuffle": _function("F.pixel_unshuffle", "self downscale_factor"),
    "channel_shuffle": _function("F.channel_shuffle", "self groups"),
    "scaled_dot_product_attention": _function(
        "F.scaled_dot_product_attention", "query key value", "attn_mask dropout_p is_causal scale"
    ),
    "cat": _function("torch.cat", "tensors", "dim"),
    "stack": _function("torch.stack", "tensors", "dim"),
    "where": _function("torch.where", "condition self other"),
    "maximum": _function("torch.maximum", "self other"),
    "minimum": _function("torch.minimum", "self other"),
    "bmm": _function("torch.bmm", "self mat2"),
    "add": _infix("+"),
    "sub": _infix("-"),
    "rsub": _infix("-", swapped=True),
    "mul": _infix("*"),
    "div": _infix("/"),
    "matmul": _infix("@"),
    "neg": _negative,
    "pow": _power,
    "add_": _method("add_", "other", "alpha"),
    "sub_": _method("sub_", "other", "alpha"),
    "mul_": _method("mul_", "other"),
    "div_": _method("div_", "other", "rounding_mode"),
    "copy_": _method("copy_", "src"),
    "clamp": _method("clamp", "", "min max"),
    "clamp_min": _method("clamp", "", "min"),
    "clamp_max": _method("clamp", "", "max"),
    "mean": _method("mean", "", _REDUCTION),
    "sum": _method("sum", "", f"{_REDUCTION} dtype"),
    "amax": _method("amax", "", _REDUCTION),
    "amin": _method("amin", "", _REDUCTION),
    "flatten": _method("flatten", "start_dim", "end_dim"),
    "unflatten": _method("unflatten", "dim sizes"),
    "transpose": _method("transpose", "dim0 dim1"),
    "unsqueeze": _method("unsqueeze", "dim"),
    "squeeze": _method("squeeze", "", "dim"),
    "chunk": _method("chunk", "chunks", "dim"),
    "split": _method("split", "split_size", "dim"),
    "split_with_sizes": _method("split", "split_sizes", "dim"),
    "unbind": _method("unbind", "", "dim"),
    "contiguous": _method("contiguous"),
    "clone": _method("clone"),
    "view": _sized("view", "size"),
    "reshape": _sized("reshape", "shape"),
    "permute": _sized("permute", "dims"),
    "expand": _sized("expand", "size"),
    "repeat": _sized("repeat", "repeats"),
    "select": _select,
    "index": _index,
    **{f"upsample_nearest{n}d": _interpolate("nearest") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": _interpolate("nearest-exact") for n in (1, 2, 3)},
    "upsample_linear1d": _interpolate("linear"),
    "upsample_bilinear2d": _interpolate("bilinear"),
    "upsample_trilinear3d": _interpolate("trilinear"),
    "upsample_bicubic2d": _interpolate("bicubic"),
    "sym_size": _size,
}
