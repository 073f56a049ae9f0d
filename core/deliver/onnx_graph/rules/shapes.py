"""Operators that move elements: shapes, slices, joins, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from core.deliver.onnx_graph.call import Call, Live, Size

_TO_THE_END = 2**63 - 1
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def reshape(call: Call, value: str, sizes: Sequence[int | Size]) -> str:
    """Reshape to `sizes`; at most one of them may be -1."""
    live = [index for index, size in enumerate(sizes) if isinstance(size, Size)]
    if len(live) <= 1:
        # All elements of one image are known: what is left for the one live size follows from the others.
        shape = call.result.shape
        known = [
            -1 if index in live else shape[index] if size == -1 and live else size for index, size in enumerate(sizes)
        ]
        return call.builder.add("Reshape", value, call.builder.integers(known))
    return call.builder.add("Reshape", value, _live_shape(call, sizes))


def _live_shape(call: Call, sizes: Sequence[int | Size]) -> str:
    parts = [size.name if isinstance(size, Size) else call.builder.integers([size]) for size in sizes]
    return call.builder.add("Concat", *parts, axis=0)


def _view(call: Call) -> str:
    sizes = call["size"] if "size" in call.values else call["shape"]
    return reshape(call, call.tensor("self"), sizes)


def _reshape_as(call: Call) -> str:
    return call.builder.add("Reshape", call.tensor("self"), call.builder.add("Shape", call.tensor("other")))


def _flatten(call: Call) -> str:
    rank = call.rank("self")
    if rank == 0:
        return call.builder.add("Reshape", call.tensor("self"), call.builder.integers([1]))
    first, last = call["start_dim"] % rank, call["end_dim"] % rank
    # 0 keeps the size of the operand at that place.
    return call.builder.add(
        "Reshape",
        call.tensor("self"),
        call.builder.integers([*[0] * first, -1, *call.shape("self")[last + 1 :]]),
    )


def _unflatten(call: Call) -> str:
    axis = call.axis("dim")
    sizes = call["sizes"]
    if any(isinstance(size, Size) for size in sizes):
        raise call.uncovered("live sizes")
    after = call.shape("self")[axis + 1 :]
    return call.builder.add("Reshape", call.tensor("self"), call.builder.integers([*[0] * axis, *sizes, *after]))


def _squeeze(call: Call) -> object:
    shape = call.shape("self")
    axes = call.axes("dim") if "dim" in call.values else range(1, len(shape))
    single = [axis for axis in axes if shape[axis] == 1]
    return call.builder.add("Squeeze", call.tensor("self"), call.builder.integers(single)) if single else call["self"]


def _unsqueeze(call: Call) -> str:
    axis = call["dim"] % (call.rank("self") + 1)
    return call.builder.add("Unsqueeze", call.tensor("self"), call.builder.integers([axis]))


def _expand(call: Call) -> str:
    # 1 leaves a size as it is, which is what -1 means to PyTorch.
    sizes = [1 if size == -1 else size for size in call["size"]]
    live = any(isinstance(size, Size) for size in sizes)
    shape = _live_shape(call, sizes) if live else call.builder.integers(sizes)
    return call.builder.add("Expand", call.tensor("self"), shape)


def _expand_as(call: Call) -> str:
    return call.builder.add("Expand", call.tensor("self"), call.builder.add("Shape", call.tensor("other")))


def _filled(fill: float) -> Any:
    def rule(call: Call) -> str:
        """A new tensor of a live size."""
        value = call.builder.scalar(call.get("fill_value", fill), call.result.dtype)
        return call.builder.add("Expand", value, _live_shape(call, call["size"]))

    return rule


def _permute(call: Call) -> str:
    return call.builder.add("Transpose", call.tensor("self"), perm=call.axes("dims"))


def _transpose(call: Call) -> str:
    names = ("dim0", "dim1") if "dim0" in call.values else ("axis0", "axis1")
    order = list(range(call.rank("self")))
    first, second = (call.axis(name) for name in names)
    order[first], order[second] = second, first
    return call.builder.add("Transpose", call.tensor("self"), perm=order)


def _matrix_transpose(call: Call) -> object:
    return call.builder.add("Transpose", call.tensor("self"), perm=[1, 0]) if call.rank("self") == 2 else call["self"]


def _slice(call: Call) -> object:
    start, end, step = call["start"] or 0, call["end"], call["step"]
    end = _TO_THE_END if end is None else end
    if any(isinstance(limit, Size) for limit in (start, end, step)):
        raise call.uncovered("live limits")
    if (
        (start, step) == (0, 1)
        and end >= call.shape("self")[call.axis("dim")]
        and (call.axis("dim") or end == _TO_THE_END)
    ):
        return call["self"]
    limits = [call.builder.integers([value]) for value in (start, end, call.axis("dim"), step)]
    return call.builder.add("Slice", call.tensor("self"), *limits)


def _select(call: Call) -> str:
    call.require(isinstance(call["index"], int), "a live index")
    index = call.builder.integers([call["index"]])
    taken = call.builder.add("Gather", call.tensor("self"), index, axis=call.axis("dim"))
    return call.builder.add("Squeeze", taken, call.builder.integers([call.axis("dim")]))


def _split(call: Call) -> Any:
    axis = call.axis("dim")
    return _pieces(call, axis, [meta.shape[axis] for meta in call.result])


def _pieces(call: Call, axis: int, sizes: list[int]) -> Any:
    if len(sizes) == 1:
        return (call["self"],)
    return call.builder.add("Split", call.tensor("self"), call.builder.integers(sizes), outputs=len(sizes), axis=axis)


def _unbind(call: Call) -> tuple[str, ...]:
    axis = call.axis("dim")
    pieces = _pieces(call, axis, [1] * len(call.result))
    names = [piece.name if isinstance(piece, Live) else piece for piece in pieces]
    return tuple(call.builder.add("Squeeze", name, call.builder.integers([axis])) for name in names)


def _joined(call: Call, axis: int) -> list[str]:
    return [
        call.operand(value, raw, call.result.dtype)
        for value, raw in zip(call["tensors"], call.raw["tensors"], strict=True)
    ]


def _concatenate(call: Call) -> object:
    axis = call["dim"] % len(call.result.shape)
    if len(call["tensors"]) == 1:
        return call["tensors"][0]
    return call.builder.add("Concat", *_joined(call, axis), axis=axis)


def _stack(call: Call) -> str:
    axis = call["dim"] % len(call.result.shape)
    where = call.builder.integers([axis])
    parts = [call.builder.add("Unsqueeze", name, where) for name in _joined(call, axis)]
    return call.builder.add("Concat", *parts, axis=axis)


def _roll(call: Call) -> str:
    """The last `shift` positions in front of the others, axis by axis."""
    shifts = call["shifts"] if isinstance(call["shifts"], (list, tuple)) else [call["shifts"]]
    axes = [axis % call.rank("self") for axis in call["dims"]]
    call.require(len(axes) == len(shifts) and 0 not in axes, "a shift of the flattened tensor or of the batch")
    value = call.tensor("self")
    for shift, axis in zip(shifts, axes, strict=True):
        size = call.shape("self")[axis]
        cut = -shift % size
        if cut:
            first, second = call.builder.add(
                "Split", value, call.builder.integers([cut, size - cut]), outputs=2, axis=axis
            )
            value = call.builder.add("Concat", second, first, axis=axis)
    return value if value != call.tensor("self") else call.builder.add("Identity", value)


def _flip(call: Call) -> str:
    axes = call.axes("dims")
    limits = [call.builder.integers([value] * len(axes)) for value in (-1, -_TO_THE_END)]
    steps = call.builder.integers([-1] * len(axes))
    return call.builder.add("Slice", call.tensor("self"), *limits, call.builder.integers(axes), steps)


def _repeat(call: Call) -> str:
    call.require(all(isinstance(count, int) for count in call["repeats"]), "a live count")
    value = call.tensor("self")
    missing = len(call["repeats"]) - call.rank("self")
    if missing:
        value = call.builder.add("Unsqueeze", value, call.builder.integers(range(missing)))
    return call.builder.add("Tile", value, call.builder.integers(call["repeats"]))


def _pad(call: Call) -> str:
    """PyTorch names pads from the last axis to the first, in pairs; ONNX all beginnings, then all ends."""
    mode, pads, rank = call.get("mode", "constant"), call["pad"], call.rank("self")
    call.require(mode in _PAD_MODES and all(isinstance(size, int) for size in pads), f"padding by {mode!r}")
    begins, ends = [0] * rank, [0] * rank
    for pair in range(len(pads) // 2):
        begins[rank - 1 - pair], ends[rank - 1 - pair] = pads[2 * pair], pads[2 * pair + 1]
    fill = call.builder.scalar(call.get("value") or 0, call.result.dtype) if mode == "constant" else ""
    return call.builder.add(
        "Pad", call.tensor("self"), call.builder.integers([*begins, *ends]), fill, mode=_PAD_MODES[mode]
    )


def _index(call: Call) -> str:
    """Positions along one axis, or a table of them."""
    indexed = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    call.require(len(indexed) == 1, "several index tensors")
    ((axis, index),) = indexed
    raw: Node = call.raw["indices"][axis]
    call.require(isinstance(index, Tensor) and not index.is_floating_point(), "a live index")
    call.require(str(index.dtype) == "torch.int64", "a mask")
    return call.builder.add("Gather", call.tensor("self"), call.operand(index, raw), axis=axis)


def _index_select(call: Call) -> str:
    return call.builder.add("Gather", call.tensor("self"), call.tensor("index"), axis=call.axis("dim"))


def _size_of(call: Call) -> object:
    axis = call.axis("dim")
    return Size(call.builder.add("Shape", call.tensor("self"), start=axis, end=axis + 1))


RULES = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view),
    **dict.fromkeys(("reshape_as", "view_as"), _reshape_as),
    "flatten": _flatten,
    "unflatten": _unflatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "expand_as": _expand_as,
    "zeros": _filled(0.0),
    "ones": _filled(1.0),
    "full": _filled(0.0),
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    "t": _matrix_transpose,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    "stack": _stack,
    "roll": _roll,
    "flip": _flip,
    "repeat": _repeat,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "index": _index,
    "index_select": _index_select,
    "sym_size": _size_of,
}
