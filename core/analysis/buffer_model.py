"""The buffer model: what an activation costs in memory. One definition, which both counts follow.

`core.analysis.memory` derives peak memory from the graph alone; `core.measure` observes it on a real run. They must
agree on every network, before and after pruning, so every open point is decided here and nowhere else:

1.  Batch 1, graph order, four bytes per element whatever its type. Network inputs and outputs count, weights do not,
    and there is no workspace. A buffer dies after the last node that takes any value in it as an argument; the
    network's output is such a node.
2.  A call allocates each tensor that it returns, except for 3 and 4.
3.  A view lies in its source's buffer (`view_layout`). A view is what PyTorch's schema declares to share memory, and
    the `unsafe` splits, `_unsafe_view` and `type_as`, which do so without saying it.
    `reshape`, `flatten` and `contiguous` are views of a value in order and copies of any other. A value is in order
    unless it has been permuted, narrowed (slice, split, select, …) or expanded since its buffer was filled.
    Conversions are views if the type stays; a requested copy or memory format is a copy.
4.  The operators of `IN_PLACE` with one tensor operand, and batch-norm, write over their operand (`may_overwrite`) if
    the operand is all of its buffer (not narrowed, not expanded) and nothing in that buffer is read later. Operands
    are counted as written: `x * x` has two. A parameter is an operand, so `prelu` and `x * gain` have two as well.
    Operators that make a copy (`clone`) or a new tensor of the same shape (`zeros_like`) do not overwrite.
5.  In-place flags say nothing: `add_` counts as `add`. Only a call that nobody reads, kept for what it writes
    (`y[:, 0] = 0`), allocates nothing.

No rule looks at a size. Pruning may leave one channel, and PyTorch then returns a view where it copied before: the
model counts a copy in both networks, so that what is planned on the original holds for the pruned one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from core.analysis.schema import bind, is_aten, operator_name
from core.network import TensorMeta

BYTES_PER_ELEMENT = 4

_OVERWRITING = """
relu relu6 silu gelu elu selu celu mish hardswish hardsigmoid hardtanh leaky_relu sigmoid tanh softplus softsign
log_sigmoid tanhshrink softshrink hardshrink threshold logit
exp expm1 log log1p log2 log10 sqrt rsqrt square abs neg sign sgn reciprocal sin cos tan asin acos atan sinh cosh
erf erfc floor ceil round trunc frac clamp clamp_min clamp_max clip nan_to_num
isnan isinf isfinite logical_not bitwise_not
to _to_copy float double half
dropout feature_dropout alpha_dropout feature_alpha_dropout
add sub rsub mul div true_divide floor_divide remainder fmod pow
eq ne lt le gt ge bitwise_and bitwise_or bitwise_xor
"""
IN_PLACE = frozenset(_OVERWRITING.split())
_CONVERSIONS = frozenset({"to", "type_as"})
_COPIES_UNLESS_IN_ORDER = frozenset({"reshape", "reshape_as", "flatten", "ravel", "contiguous"})
_ORDERED_VIEWS = (
    _CONVERSIONS
    | _COPIES_UNLESS_IN_ORDER
    | {"view", "view_as", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "detach", "alias"}
)
_PERMUTATIONS = frozenset(
    {"permute", "transpose", "t", "numpy_T", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "mT", "mH"}
)
_UNDECLARED_VIEWS = frozenset({"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "type_as"})


class Layout(NamedTuple):
    """How a value lies in its buffer: elements in their original order; every element of the buffer exactly once."""

    ordered: bool
    whole: bool


FILLED = Layout(ordered=True, whole=True)


def source(node: Node) -> Node | None:
    """The operand whose buffer the call may use: its first tensor."""
    return next((one for one in node.all_input_nodes if _is_tensor(one)), None)


def view_layout(node: Node, of: Layout) -> Layout | None:
    """The layout of a call's results in its source's buffer, or None where the call is no view."""
    if not is_aten(node.target):
        return None
    if _only_writes(node):
        return of
    name = operator_name(node.target)
    if not (_declares_view(node) or name in _UNDECLARED_VIEWS) or _asks_for_copy(node, name):
        return None
    if name in _COPIES_UNLESS_IN_ORDER and not of.ordered:
        return None
    if name in _ORDERED_VIEWS:
        return of
    return Layout(ordered=False, whole=of.whole and name in _PERMUTATIONS)


def may_overwrite(node: Node) -> bool:
    """Whether the call writes over its operand, if that is all of its buffer and not read later."""
    if not is_aten(node.target) or not isinstance(node.meta["value"], TensorMeta) or _wants_memory_format(node):
        return False
    name = operator_name(node.target)
    plain = name if name.startswith("_") else name.removesuffix("_")
    return plain == "batch_norm" or (plain in IN_PLACE and _operand_count(node) == 1)


def _operand_count(node: Node) -> int:
    operands: list[Node] = []
    map_arg((node.args, node.kwargs), operands.append)
    return sum(_is_tensor(one) for one in operands)


def _declares_view(node: Node) -> bool:
    aliases = [returned.alias_info for returned in node.target._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _only_writes(node: Node) -> bool:
    return node.target._schema.is_mutable and not node.users


def _asks_for_copy(node: Node, name: str) -> bool:
    if _wants_memory_format(node):
        return True
    if name not in _CONVERSIONS:
        return False
    return bool(bind(node).get("copy")) or source(node).meta["value"].dtype != node.meta["value"].dtype


def _wants_memory_format(node: Node) -> bool:
    usual = (
        (None, torch.contiguous_format) if operator_name(node.target) == "contiguous" else (None, torch.preserve_format)
    )
    return bind(node).get("memory_format") not in usual


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("value"), TensorMeta)
