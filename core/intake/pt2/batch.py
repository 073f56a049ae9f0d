"""Programs that were exported for one number of images: the sizes that hold that number, made to follow the batch.

`torch.export.export(model, (torch.zeros(1, 3, 224, 224),))` writes the 1 into every reshape. A size is taken for the batch

* of a reshape or an expansion of what follows the batch: where the images of its operand come to lie, else where it is
  the number itself and no other reading computes;
* of what is made anew, or repeated for every image (a class token): where it stands first and is the number itself.

Whether that was right is shown by running the network on several images, at once and one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from core.analysis.schema import operator_name
from core.intake.pt2.calls import Made, follows_batch

MANY = 3
# By operator, its argument that is a list of sizes.
_RESHAPES = {"view": "size", "_unsafe_view": "size", "reshape": "shape", "expand": "size"}
_MAKERS = {
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "expand"), "size"),
    "repeat": "repeats",
}


def readings(
    target: torch._ops.OpOverload, arguments: dict[str, Any], fixed: int, *, follows: bool
) -> Iterator[tuple[str, int, int]]:
    """(argument, position, images' share) of each size that may stand for the batch, ("", 0, 0) for none; likeliest first.

    arguments: the call's by name, sizes that are literals as int. fixed: the number of images that was exported.
    follows: whether what the call reads follows the batch.
    """
    operator = operator_name(target)
    operand = arguments.get("self")
    reshapes = follows and operator in _RESHAPES and isinstance(operand, Made) and follows_batch(operand)
    name = (_RESHAPES if reshapes else _MAKERS).get(operator, "")
    sizes = arguments.get(name)
    if not isinstance(sizes, list) or (follows and operator == "repeat"):
        yield "", 0, 0
        return
    able = [at for at, size in enumerate(sizes) if type(size) is int and size > 0 and size % fixed == 0]
    if reshapes:
        likely = _place(operator, operand, sizes, fixed)
    else:
        likely = 0 if sizes and sizes[0] == fixed and len(sizes) > 1 else None
    if likely in able:
        yield name, likely, sizes[likely] // fixed
    yield "", 0, 0
    for at in able if reshapes else ():
        if at != likely and sizes[at] == fixed:
            yield name, at, 1


def _place(operator: str, operand: Made, sizes: list[Any], fixed: int) -> int | None:
    """The axis of the result that the images of the operand lie along."""
    one, many = operand.one.shape, operand.many.shape
    axis = next(axis for axis, pair in enumerate(zip(one, many, strict=True)) if pair[0] != pair[1])
    if operator == "expand":
        return axis + len(sizes) - len(one)
    if not all(type(size) is int for size in sizes):
        return None
    known = math.prod(size for size in sizes if size != -1)
    shape = [operand.one.numel() * fixed // max(known, 1) if size == -1 else size for size in sizes]
    # As many elements lie between one image and the next as before.
    before = math.prod(one[:axis])
    return next((at for at in range(len(shape)) if math.prod(shape[:at]) == before), None)
