"""Allocation: bits go to the layers where they lower the network's error most.

Every group of kernels has a curve of (bits, error): the size of its coded indices and codebook against its squared error
times its sensitivity. From the cheapest points on, the segment of the convex hulls with the steepest fall is bought
first, until the bits are spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.encoding.kernels import Group
from core.encoding.quantizers import Levels, quantizer

_FLOAT_BITS = 32


@dataclass(frozen=True, eq=False)
class Point:
    """One way to quantise a group. bits: entropy of its indices, zeros included, and its codebook. error: weighted."""

    levels: Levels | None
    bits: float
    error: float


def point(group: Group, levels: Levels | None, sensitivity: Mapping[str, float]) -> Point:
    """What `levels` cost for the group, and what they do to it. Error of pruned weights is not in it: pruning is given."""
    entries = sum(kernel.values.size for kernel in group.kernels)
    alive = sum(int(kernel.survivors.sum()) for kernel in group.kernels)
    bits = entries * _binary_entropy(alive / entries)
    if levels is None:
        return Point(None, bits + _FLOAT_BITS, 0.0)
    codebook = len(levels) + (alive < entries)
    weight = sum(sensitivity[kernel.name] * int(kernel.survivors.sum()) for kernel in group.kernels) / alive
    return Point(levels, bits + alive * levels.bits + _FLOAT_BITS * codebook, weight * levels.squared_error)


def curve(group: Group, name: str, most_levels: int, sensitivity: Mapping[str, float]) -> list[Point]:
    """All ways that the quantiser `name` offers for the group and that take less than plain floats would."""
    if group.values is None:
        return [point(group, None, sensitivity)]
    points = [point(group, levels, sensitivity) for levels in quantizer(name, group.values, most_levels).curve()]
    plain = _FLOAT_BITS * sum(kernel.values.size for kernel in group.kernels)
    return [one for one in points if one.bits < plain] or [min(points, key=lambda one: one.bits)]


def allocate(curves: Sequence[Sequence[Point]], budget_bits: float) -> list[Point]:
    """One point per curve: the least total error found within the budget, or the cheapest points where nothing fits."""
    hulls = [hull(points) for points in curves]
    chosen = [0] * len(hulls)
    left = budget_bits - sum(points[0].bits for points in hulls)
    steps = []
    for index, points in enumerate(hulls):
        for place in range(1, len(points)):
            before, after = points[place - 1], points[place]
            steps.append(((before.error - after.error) / (after.bits - before.bits), index, place))
    # Slopes fall along a hull, so each group's steps come in their order.
    for _, index, place in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        cost = hulls[index][place].bits - hulls[index][place - 1].bits
        if place == chosen[index] + 1 and cost <= left:
            chosen[index], left = place, left - cost
    picked = [points[place] for points, place in zip(hulls, chosen, strict=True)]
    return _filled(curves, picked, left)


def hull(points: Sequence[Point]) -> list[Point]:
    """The points that no mixture of others beats, from few bits to many."""
    kept: list[Point] = []
    for one in sorted(points, key=lambda p: (p.bits, p.error)):
        if kept and one.error >= kept[-1].error:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-2], one):
            kept.pop()
        kept.append(one)
    return kept


def _slope(first: Point, second: Point) -> float:
    return (first.error - second.error) / max(second.bits - first.bits, 1e-9)


def _filled(curves: Sequence[Sequence[Point]], picked: list[Point], left: float) -> list[Point]:
    """What is left of the budget goes to points off the hulls, as long as one of them still lowers the error."""
    while True:
        options = [
            ((picked[index].error - one.error) / max(one.bits - picked[index].bits, 1e-9), index, one)
            for index, points in enumerate(curves)
            for one in points
            if one.error < picked[index].error and one.bits - picked[index].bits <= left
        ]
        if not options:
            return picked
        _, index, best = max(options, key=lambda option: option[0])
        left -= best.bits - picked[index].bits
        picked[index] = best


def _binary_entropy(share: float) -> float:
    if share in (0.0, 1.0):
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def index_entropy(indices: np.ndarray) -> float:
    """Bits per entry of an ideal code for these indices, each coded by itself."""
    counts = np.unique(indices, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
