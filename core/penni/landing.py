"""Landing counted without dead channels: what leaves with the columns makes room for other columns.

A search counts layers; what is delivered has lost channels on top, and may hold a little more than was counted, where a
layer died that was counted in two stages and stays as a plain convolution of one channel. So each selection is counted
again as it would be delivered, and the limits of the search are moved by the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.budget import Constraint, Costs
from core.penni.search import ColumnSearch, Selection
from core.penni.slimming import Slim

# How often the limits are moved.
_TRIES = 6


def landed(
    search: ColumnSearch,
    slimmed: Callable[[Selection], Slim],
    constraints: Sequence[Constraint],
    aims: Sequence[Constraint] = (),
) -> Selection | None:
    """The most within caps and aims as it would be delivered; None where even the fewest columns exceed one.

    slimmed: what would be delivered of a selection. aims: caps on the paper's count.
    """
    best, caps, wanted = None, tuple(constraints), tuple(aims)
    for _ in range(_TRIES):
        selection = search.land(caps, wanted)
        if selection is None:
            break
        left = slimmed(selection)
        if left.meets(constraints, aims):
            best = selection
        elif best is not None:
            break
        counted = search.exact(selection).costs
        moved = tuple(_moved(*pair, counted, left.costs) for pair in zip(constraints, caps, strict=True))
        aimed = wanted
        if aims:
            sparse = left.sparse
            aimed = tuple(_moved(*pair, selection.counted, sparse) for pair in zip(aims, wanted, strict=True))
        if (moved, aimed) == (caps, wanted):
            break
        caps, wanted = moved, aimed
    if best is None:
        fewest = search.smallest
        best = fewest if slimmed(fewest).meets(constraints, aims) else None
    return best


def _moved(cap: Constraint, searched: Constraint, counted: Costs, left: Costs) -> Constraint:
    """The limit of the next search, for what is left without the dead channels to reach the cap. searched: the last."""
    if not cap.met_by(left):
        return replace(cap, limit=searched.limit - max(1, cap.value(left) - cap.limit))
    if searched.limit < cap.limit:
        return searched
    limit = math.floor(cap.limit * cap.value(counted) / max(1, cap.value(left)))
    return replace(cap, limit=max(cap.limit, limit))
