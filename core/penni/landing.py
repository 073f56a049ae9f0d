"""Landing counted without dead channels: what leaves with the columns makes room for other columns.

A search counts layers; what is delivered has lost channels on top, and may hold a little more than was counted, where a
layer died that was counted in two stages and stays as a plain convolution of one channel. So each selection is counted
again as it would be delivered, and the limits of the search are moved by the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from core.budget import Constraint, Costs
from core.penni.pruning import Pruning
from core.penni.search import ColumnSearch, Selection
from core.penni.slimming import Slim

# How often the limits are moved.
_TRIES = 10
# This much of a cap is all of it.
_LANDED = 0.999

# Of the caps and of the aims.
_Limits = tuple[tuple[Constraint, ...], tuple[Constraint, ...]]


def landed(
    search: ColumnSearch,
    slimmed: Callable[[Selection], Slim],
    pruning: Pruning,
) -> Selection | None:
    """The most within caps and aims as it would be delivered; None where even the fewest columns exceed one.

    slimmed: what would be delivered of a selection.
    """
    constraints, aims = tuple(pruning.constraints), tuple(pruning.aims)
    best: Selection | None = None
    # Limits under which what is left is within the caps, and others under which it is not.
    within: _Limits | None = None
    beyond: _Limits | None = None
    limits: _Limits = (constraints, aims)
    for _ in range(_TRIES):
        selection = search.land(*limits)
        if selection is None:
            break
        left = slimmed(selection)
        if left.meets(constraints, aims):
            best, within = selection, limits
            if any(cap.value(left.costs) >= _LANDED * cap.limit for cap in constraints):
                break
        else:
            beyond = limits
        if within is not None and beyond is not None:
            following = _between(within, beyond)
        else:
            counted = search.exact(selection).costs
            following = (
                tuple(_moved(*pair, counted, left.costs) for pair in zip(constraints, limits[0], strict=True)),
                tuple(_moved(*pair, selection.counted, left.sparse) for pair in zip(aims, limits[1], strict=True)),
            )
        if following in (limits, within):
            break
        limits = following
    if best is None:
        fewest = search.smallest
        best = fewest if slimmed(fewest).meets(constraints, aims) else None
    return best


def _between(within: _Limits, beyond: _Limits) -> _Limits:
    """Halfway: what dies at once takes much with it, so that no rule of three lands there."""
    halves = (
        tuple(replace(low, limit=(low.limit + high.limit) // 2) for low, high in zip(*pair, strict=True))
        for pair in zip(within, beyond, strict=True)
    )
    lower, upper = halves
    return lower, upper


def _moved(cap: Constraint, searched: Constraint, counted: Costs, left: Costs) -> Constraint:
    """The limit of the next search, for what is left without the dead channels to reach the cap. searched: the last."""
    if not cap.met_by(left):
        return replace(cap, limit=searched.limit - max(1, cap.value(left) - cap.limit))
    if searched.limit < cap.limit:
        return searched
    limit = math.floor(cap.limit * cap.value(counted) / max(1, cap.value(left)))
    return replace(cap, limit=max(cap.limit, limit))
