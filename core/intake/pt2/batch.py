"""Programs that were exported for one number of images: the sizes that hold that number, made to follow the batch.

`torch.export.export(model, (torch.zeros(1, 3, 224, 224),))` writes the 1 into every reshape. A size of a reshape or an
expansion is taken for the batch where it stands first and is a multiple of it, or where no other reading computes at all;
whether that was right is shown by running the network on several images, at once and one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from core.analysis.schema import operator_name

MANY = 3
# By operator, its argument that is a list of sizes.
_SIZES = {
    "view": "size",
    "_unsafe_view": "size",
    "reshape": "shape",
    "expand": "size",
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), "size"),
}


def readings(target: torch._ops.OpOverload, arguments: dict[str, Any], fixed: int) -> Iterator[tuple[str, int, int]]:
    """(argument, position, images' share) of each size that may stand for the batch, ("", 0, 0) for none; likeliest first.

    arguments: the call's by name, sizes that are literals as int. fixed: the number of images that was exported.
    """
    name = _SIZES.get(operator_name(target), "")
    sizes = arguments.get(name)
    if not isinstance(sizes, list):
        yield "", 0, 0
        return
    able = [at for at, size in enumerate(sizes) if type(size) is int and size > 0 and size % fixed == 0]
    if able and able[0] == 0:
        yield name, 0, sizes[0] // fixed
    yield "", 0, 0
    for at in able:
        if at and sizes[at] == fixed:
            yield name, at, 1
