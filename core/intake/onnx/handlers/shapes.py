"""Reshaping. Sizes are literals except the batch's, which is always −1: "whatever is left".

A graph that was exported for one image has batch 1 in its constants: `Reshape(x, [1, 256, -1])`. The batch stays where it
is in memory order, so the one axis of the target that begins there takes it over, whatever number stands there.
"""

from __future__ import annotations

import math

import torch

from core.intake.onnx.builder import MAX_KNOWN_ELEMENTS, Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import MANY, Computed, Known, NotPerImage, Unsupported, Value


def reshape(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    if "shape" in node.attributes:
        wanted = Known.of(torch.tensor(node.get("shape"), dtype=torch.int64))
    else:
        wanted = node.known(1)
        if wanted is None:
            raise Unsupported("no shape is given")
    keeps_zero = bool(node.get("allowzero", 0))
    raw = [int(size) for size in wanted.one.reshape(-1)]
    one = _resolved(raw, x.shape, keeps_zero)
    many = _resolved([int(size) for size in wanted.many.reshape(-1)], x.shape_many, keeps_zero)
    changed = [axis for axis, sizes in enumerate(zip(one, many, strict=True)) if sizes[0] != sizes[1]]
    proportional = len(changed) <= 1 and all(many[axis] == MANY * one[axis] for axis in changed)
    # A file for any number of images means what it says, such as all their channels side by side.
    exact = changed and proportional and math.prod(many) == math.prod(x.shape_many)
    literal = builder.dynamic and isinstance(x, Computed) and exact
    if wanted.fixed and not literal:
        return reshape_to(builder, x, one, raw)
    if not proportional:
        raise NotPerImage("it makes a shape that is not proportional to the batch size")
    if isinstance(x, Known):
        return builder.call(
            aten.reshape.default, builder.lift(x), [-1 if axis in changed else size for axis, size in enumerate(one)]
        )
    return builder.call(aten.reshape.default, x, [-1 if axis in changed else size for axis, size in enumerate(one)])


def reshape_to(builder: Builder, x: Value, shape: list[int], raw: list[int] | None = None) -> Value:
    """`x` in `shape`, which is the one at batch 1. raw: what the graph says there, 0 and −1 included."""
    batch = x.batch_axis
    if math.prod(shape) != math.prod(x.shape):
        raise Unsupported(f"{list(x.shape)} does not fit into {shape}")
    if batch is None:
        return builder.call(aten.reshape.default, x, shape)
    if tuple(shape) == x.shape:
        return x
    before = math.prod(x.shape[:batch])
    starts = [axis for axis in range(len(shape)) if math.prod(shape[:axis]) == before]
    if not starts:
        raise NotPerImage("it reshapes images of a batch into each other")
    said = raw or shape
    preferred = [axis for axis in starts if said[axis] == 0 and axis == batch]
    preferred += [axis for axis in starts if axis == batch]
    preferred += [axis for axis in starts if said[axis] == -1] + starts
    return builder.call(
        aten.reshape.default, x, [-1 if axis == preferred[0] else size for axis, size in enumerate(shape)]
    )


def _resolved(raw: list[int], shape: tuple[int, ...], keeps_zero: bool) -> list[int]:
    if raw.count(-1) > 1 or any(size < -1 for size in raw):
        raise Unsupported(f"shape {raw}")
    sizes = []
    for axis, size in enumerate(raw):
        if size == 0 and not keeps_zero:
            if axis >= len(shape):
                raise Unsupported(f"shape {raw} of a value with {len(shape)} dimensions")
            size = shape[axis]
        sizes.append(size)
    rest = math.prod(size for size in sizes if size != -1)
    total = math.prod(shape)
    return [(total // rest if rest else 0) if size == -1 else size for size in sizes]


def flatten(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    given = node.get("axis", 1)
    axis = given if given == x.rank else x.axis(given)
    if axis == 1 and x.rank > 1 and isinstance(x, Computed) and x.batch_axis in (0, None):
        return builder.call(aten.flatten.using_ints, x, 1)
    if x.batch_axis is not None and axis == 0:
        raise NotPerImage("it flattens all images into one row")
    return reshape_to(builder, x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def transpose(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    order = node.get("perm") or list(reversed(range(x.rank)))
    if sorted(order) != list(range(x.rank)):
        raise Unsupported(f"perm {order} of a value with {x.rank} dimensions")
    return x if order == list(range(x.rank)) else builder.call(aten.permute.default, x, order)


def squeeze(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    given = node.integers("axes", 1)
    axes = (
        [axis for axis, size in enumerate(x.shape) if size == 1] if given is None else [x.axis(axis) for axis in given]
    )
    if given is None and x.batch_axis in axes and not builder.squeezes_batch:
        axes.remove(x.batch_axis)
        builder.kept_batch = True
    x.require_whole_images(axes, "squeezes")
    if any(x.shape[axis] != 1 for axis in axes):
        raise Unsupported(f"axes {axes} of shape {list(x.shape)} are not all 1")
    return builder.call(aten.squeeze.dims, x, axes) if axes else x


def unsqueeze(builder: Builder, node: OnnxNode) -> Value:
    x, axes = node.input(0), node.integers("axes", 1)
    if axes is None:
        raise Unsupported("axes are missing")
    rank = x.rank + len(axes)
    for axis in sorted(axis + rank if axis < 0 else axis for axis in axes):
        x = builder.call(aten.unsqueeze.default, x, axis)
    return x


def expand(builder: Builder, node: OnnxNode) -> Value:
    x, wanted = node.input(0), node.known(1)
    if wanted is None:
        raise Unsupported("no shape is given")
    one, many = ([int(size) for size in each.reshape(-1)] for each in (wanted.one, wanted.many))
    if isinstance(x, Known):
        return Known(*(_broadcast(value, sizes) for value, sizes in ((x.one, one), (x.many, many))))
    rank = max(len(one), x.rank)
    sizes = []
    for axis in range(rank):
        own, asked = axis - rank + x.rank, axis - rank + len(one)
        pair = (one[asked], many[asked]) if asked >= 0 else (1, 1)
        stays = own >= 0 and (pair[0] == 1 or x.shape[own] == pair[0])
        sizes.append(
            -1 if stays and (x.shape[own] != 1 or pair == (1, 1) or own == x.batch_axis) else builder.size(*pair)
        )
    return x if len(sizes) == x.rank and set(sizes) <= {-1} else builder.call(aten.expand.default, x, sizes)


def _broadcast(value: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    try:
        shape = torch.broadcast_shapes(value.shape, sizes)
    except RuntimeError as error:
        raise Unsupported(f"{list(value.shape)} does not expand to {sizes}") from error
    if math.prod(shape) > MAX_KNOWN_ELEMENTS:
        raise Unsupported(f"a constant of shape {sizes}")
    return value.expand(shape)


def tile(builder: Builder, node: OnnxNode) -> Value:
    x, repeats = node.input(0), node.integers("repeats", 1)
    if repeats is None or len(repeats) != x.rank or min(repeats, default=1) < 0:
        raise Unsupported("repeats that do not fit its input")
    x.require_whole_images([axis for axis, count in enumerate(repeats) if count != 1], "repeats")
    return x if set(repeats) <= {1} else builder.call(aten.repeat.default, x, list(repeats))


def shape(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    start, end = node.get("start", 0), node.get("end")
    one, many = (torch.tensor(sizes[start:end], dtype=torch.int64) for sizes in (x.shape, x.shape_many))
    return Known.of(one) if torch.equal(one, many) else Known(one, many)


def size(builder: Builder, node: OnnxNode) -> Value:
    x = node.input(0)
    return Known(torch.tensor(x.one.numel()), torch.tensor(x.many.numel()))


def depth_to_space(builder: Builder, node: OnnxNode) -> Value:
    x, block = node.input(0), node.get("blocksize", 0)
    if block < 1 or x.rank != 4 or x.shape[1] % (block * block):
        raise Unsupported(f"blocksize {block} of shape {list(x.shape)}")
    if node.get("mode", "DCR") == "CRD":
        return builder.call(aten.pixel_shuffle.default, x, block)
    images, channels, height, width = x.shape
    parts = reshape_to(builder, x, [images, block, block, channels // block**2, height, width])
    moved = builder.call(aten.permute.default, parts, [0, 3, 4, 1, 5, 2])
    return reshape_to(builder, moved, [images, channels // block**2, height * block, width * block])


def space_to_depth(builder: Builder, node: OnnxNode) -> Value:
    x, block = node.input(0), node.get("blocksize", 0)
    if block < 1 or x.rank != 4 or x.shape[2] % block or x.shape[3] % block:
        raise Unsupported(f"blocksize {block} of shape {list(x.shape)}")
    images, channels, height, width = x.shape
    parts = reshape_to(builder, x, [images, channels, height // block, block, width // block, block])
    moved = builder.call(aten.permute.default, parts, [0, 3, 5, 1, 2, 4])
    return reshape_to(builder, moved, [images, channels * block**2, height // block, width // block])


HANDLERS = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "Tile": tile,
    "Shape": shape,
    "Size": size,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
