"""A random analysis without a network: the planner's view of one, small enough to enumerate all of its widths.

Like in a real one, every cost is a sum of products of layer widths, memory is a maximum of such, components may be
several channels of a layer, some channels are fixed, and layers may share groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from core.analysis import Group, LayerWidth
from core.budget import Constraint, Costs
from core.planning import PlanOptions


@dataclass(frozen=True, eq=False)
class SyntheticAnalysis:
    """slope [layers, groups] and fixed [layers] give the widths; pairs: which layer feeds which; maps: pixels."""

    full_widths: np.ndarray
    slope: np.ndarray
    fixed: np.ndarray
    pairs: tuple[tuple[int, int], ...]
    maps: np.ndarray
    frozen: int

    @property
    def components(self) -> int:
        return int(self.full_widths.sum()) + self.frozen

    @property
    def groups(self) -> tuple[Group, ...]:
        # Frozen components come first, and the members of the groups are interleaved.
        owner = np.repeat(np.arange(len(self.full_widths)), self.full_widths)
        owner = np.random.default_rng(0).permutation(owner)
        return tuple(
            Group(g, np.flatnonzero(owner == g) + self.frozen, f"layer{g}") for g in range(len(self.full_widths))
        )

    @property
    def layers(self) -> tuple[LayerWidth, ...]:
        full = self.layer_widths(self.full_widths)
        return tuple(
            LayerWidth(
                f"layer{i}",
                int(full[i]),
                int(self.fixed[i]),
                tuple((int(g), int(self.slope[i, g])) for g in np.flatnonzero(self.slope[i])),
            )
            for i in range(len(full))
        )

    def layer_widths(self, widths: np.ndarray) -> np.ndarray:
        return self.fixed + self.slope @ widths

    def costs(self, widths: np.ndarray) -> Costs:
        width = self.layer_widths(widths)
        products = np.array([width[a] * width[b] for a, b in self.pairs])
        alive = self.maps * width
        peak = max(int(alive[a] + alive[b]) for a, b in self.pairs)
        macs = int((products * self.maps[[b for _, b in self.pairs]]).sum())
        return Costs(int(products.sum()), macs, 4 * int(products.sum()), 4 * peak)

    def holds_floors(self, widths: np.ndarray, options: PlanOptions) -> bool:
        full = self.layer_widths(self.full_widths)
        return all(
            kept >= options.floor(int(width)) for kept, width in zip(self.layer_widths(widths), full, strict=True)
        )

    def allowed_widths(self, options: PlanOptions) -> Iterator[np.ndarray]:
        """Every choice of widths that holds all floors (without rounding)."""
        for widths in itertools.product(*(range(full + 1) for full in self.full_widths)):
            if self.holds_floors(np.array(widths), options):
                yield np.array(widths)

    def smallest(self, constraint: Constraint, options: PlanOptions) -> int:
        return min(constraint.value(self.costs(widths)) for widths in self.allowed_widths(options))


def random_analysis(seed: int, *, groups: int, widest: int, shared: bool) -> SyntheticAnalysis:
    """One layer per group, and with `shared` some layers that several groups make together."""
    rng = np.random.default_rng(seed)
    slope = np.diag(rng.integers(1, 4, groups))
    if shared:
        slope = np.concatenate([np.zeros((0, groups), dtype=np.int64), slope[rng.random(groups) < 0.3]])
        extra = [rng.integers(1, 4, groups) * (rng.random(groups) < 0.6) for _ in range(2)]
        slope = np.concatenate([slope, extra, np.ones((1, groups), dtype=np.int64)])
    layers = len(slope)
    pairs = [(i, (i + 1) % layers) for i in range(layers)]
    pairs += [tuple(rng.integers(0, layers, 2).tolist()) for _ in range(2)]
    return SyntheticAnalysis(
        full_widths=rng.integers(min(4, widest), widest + 1, groups),
        slope=slope,
        fixed=rng.integers(0, 3, layers),
        pairs=tuple(pairs),
        maps=rng.integers(1, 50, layers),
        frozen=int(rng.integers(0, 4)),
    )
