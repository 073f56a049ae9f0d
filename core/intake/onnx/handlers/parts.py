"""Concat, Split, Slice, Gather, Pad: parts of axes, and axes put together."""

from __future__ import annotations

import torch

from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Computed, Known, Unsupported, Value

_LAST = 2**63 - 1


def concat(builder: Builder, node: OnnxNode) -> Value:
    parts = [node.input(index) for index in range(len(node.operands))]
    axis = parts[0].axis(node.get("axis", 1))
    parts = [part for part in parts if part.one.numel() or part.rank > 1]
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(part, Computed) for part in parts):
        for part in parts:
            part.require_whole_images([axis], "concatenates")
        parts = [_per_image(builder, part, parts, axis) for part in parts]
    return builder.call(aten.cat.default, parts, axis)


def _per_image(builder: Builder, part: Value, parts: list[Value], axis: int) -> Value:
    """A constant that was concatenated to one image (a class token) is repeated for every image."""
    batch = next((one.batch_axis for one in parts if one.batch_axis is not None), None)
    if batch is None or batch == axis or part.batch_axis is not None or part.shape[batch] != 1:
        return part
    sizes = [builder.batch() if one == batch else -1 for one in range(part.rank)]
    return builder.call(aten.expand.default, part, sizes)


def split(builder: Builder, node: OnnxNode) -> tuple[Value, ...]:
    x = node.input(0)
    axis = x.axis(node.get("axis", 0))
    x.require_whole_images([axis], "splits")
    sizes = node.integers("split", 1)
    if sizes is None:
        count = node.get("num_outputs", len(node.outputs))
        piece = -(-x.shape[axis] // count)
        sizes = tuple(min(piece, x.shape[axis] - index * piece) for index in range(count))
    if sum(sizes) != x.shape[axis] or min(sizes) < 0 or len(sizes) != len(node.outputs):
        raise Unsupported(f"pieces {list(sizes)} of an axis of {x.shape[axis]} positions")
    return builder.call(aten.split_with_sizes.default, x, list(sizes), axis)


def slice_(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    if "starts" in node.attributes:
        pairs = [(bounds, bounds) for bounds in (node.get("starts"), node.get("ends"))]
        axes, steps = node.get("axes"), None
    else:
        pairs = [
            ([int(v) for v in known.one.reshape(-1)], [int(v) for v in known.many.reshape(-1)])
            for known in (node.known(1), node.known(2))
        ]
        axes, steps = node.integers("axes", 3), node.integers("steps", 4)
    (starts, starts_many), (ends, ends_many) = pairs
    axes = range(len(starts)) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    for axis, start, start_many, end, end_many, step in zip(
        axes, starts, starts_many, ends, ends_many, steps, strict=True
    ):
        x = _cut(builder, x, x.axis(axis), (start, start_many), (end, end_many), step)
    return x


def _cut(builder: Builder, x: Value, axis: int, starts: tuple[int, int], ends: tuple[int, int], step: int) -> Value:
    if step == 0:
        raise Unsupported("a step of 0")
    one, many = (
        range(size)[slice(*_bounds(start, end, step, size))]
        for start, end, size in zip(starts, ends, (x.shape[axis], x.shape_many[axis]), strict=True)
    )
    if one == range(x.shape[axis]) and many == range(x.shape_many[axis]):
        return x
    x.require_whole_images([axis], "cuts")
    if one != many:
        raise Unsupported("borders that depend on the batch size")
    if step > 0:
        return builder.call(aten.slice.Tensor, x, axis, one.start, max(one.start, one.stop), step)
    flipped = builder.call(aten.flip.default, x, [axis])
    first = x.shape[axis] - 1 - one.start
    return builder.call(
        aten.slice.Tensor, flipped, axis, first, first + (len(one) - 1) * -step + 1 if len(one) else first, -step
    )


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int, int | None, int]:
    """ONNX's borders as Python's: below −size means before the beginning, which Python writes None for negative steps."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size), step
    return min(max(start, 0), size - 1), (None if end < 0 else min(end, size - 1)), step


def gather(builder: Builder, node: OnnxNode) -> Value:
    """A number picks a position, a run of numbers is a slice, anything else an index."""
    x, indices = node.input(0), node.input(1)
    axis = x.axis(node.get("axis", 0))
    x.require_whole_images([axis], "picks positions")
    if isinstance(indices, Computed):
        if axis == 0 and x.rank == 2 and isinstance(x, Known):
            builder.layer(node.label, {"weight": x})
            return builder.call(aten.embedding.default, x, indices)
        return builder.call(aten.index.Tensor, x, [*[None] * axis, indices])
    numbers = [number + x.shape[axis] if number < 0 else number for number in indices.integers()]
    if any(not 0 <= number < x.shape[axis] for number in numbers):
        raise Unsupported(f"an index outside of the {x.shape[axis]} positions of its axis")
    if indices.rank == 0:
        return builder.call(aten.select.int, x, axis, numbers[0])
    if indices.rank == 1 and numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return builder.call(aten.slice.Tensor, x, axis, numbers[0], numbers[0] + len(numbers))
    positive = Known.of(torch.tensor(numbers, dtype=torch.int64).reshape(indices.shape))
    if indices.rank == 1:
        return builder.call(aten.index_select.default, x, axis, positive)
    return builder.call(aten.index.Tensor, x, [*[None] * axis, positive])


def gather_elements(builder: Builder, node: OnnxNode) -> Value:
    x, indices = node.input(0), node.input(1)
    axis = x.axis(node.get("axis", 0))
    x.require_whole_images([axis], "picks positions")
    if isinstance(indices, Known):
        numbers = torch.where(indices.one < 0, indices.one + x.shape[axis], indices.one)
        indices = Known.of(numbers) if indices.fixed else indices
    return builder.call(aten.gather.default, x, axis, indices)


def pad(builder: Builder, node: OnnxNode) -> Value:
    x, mode = node.input(0), node.get("mode", "constant")
    amounts, axes = node.integers("pads", 1), node.integers("axes", 3)
    fill = node.number("value", 2)
    axes = range(x.rank) if axes is None else [x.axis(axis) for axis in axes]
    if amounts is None or len(amounts) != 2 * len(axes):
        raise Unsupported("pads that do not fit its input")
    pairs = {axis: (amounts[index], amounts[index + len(axes)]) for index, axis in enumerate(axes)}
    pairs = {axis: pair for axis, pair in pairs.items() if pair != (0, 0)}
    if not pairs:
        return x
    x.require_whole_images(pairs, "pads")
    flat = [amount for axis in range(x.rank - 1, min(pairs) - 1, -1) for amount in pairs.get(axis, (0, 0))]
    if mode == "constant":
        return builder.call(aten.constant_pad_nd.default, x, flat, 0.0 if fill is None else fill)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names:
        raise Unsupported(f"mode {mode!r}")
    spatial = x.rank - 2
    if min(pairs) < 2 or spatial > 3 or min(flat) < 0:
        raise Unsupported(f"mode {mode!r} along axis {min(pairs)}, or by a negative amount")
    flat += [0] * (2 * spatial - len(flat))
    return builder.call(aten.pad.default, x, flat, names[mode])


HANDLERS = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Pad": pad,
}
