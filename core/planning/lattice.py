"""Lattice: the widths that a plan may choose from.

Every group has a **ladder** of widths from its floor to its full width; a plan stands on one rung of each ladder, so a
plan is an int64 vector of rung numbers (`levels`), and every cost falls or stays when a level falls. Where the floor of
a layer can be held by one group or another (pieces of a split, concatenated channels), a **shared floor** remains as a
linear condition on the widths; all other floors are the bottom of a ladder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.analysis import ChannelAnalysis, LayerWidth
from core.planning.options import PlanOptions

# More components than any group has.
_ANY = 2**62


@dataclass(frozen=True, eq=False)
class Lattice:
    """ladders: int64 [groups, longest], widths ascending, padded with the full width. top: int64 [groups], last rungs.

    Shared floors: `channels @ widths >= minimum`, channels int64 [shared floors, groups].
    """

    ladders: np.ndarray
    top: np.ndarray
    channels: np.ndarray
    minimum: np.ndarray

    @staticmethod
    def of(analysis: ChannelAnalysis, options: PlanOptions) -> Lattice:
        """Floors count channels, not components: a component may be several channels of a layer."""
        full = analysis.full_widths
        floors = [_Floor.of(layer, options) for layer in analysis.layers if layer.terms]
        lowest = np.zeros(len(full), dtype=np.int64)
        multiplicities: list[set[int]] = [set() for _ in full]
        for floor in floors:
            for group, channels in floor.channels.items():
                lowest[group] = max(lowest[group], floor.fewest(group, full))
                multiplicities[group].add(channels)
        shared = [floor for floor in floors if not floor.held_by(lowest)]
        channels = np.zeros((len(shared), len(full)), dtype=np.int64)
        for row, floor in enumerate(shared):
            channels[row, list(floor.channels)] = list(floor.channels.values())
        ladders = [
            _ladder(int(low), int(high), steps, options.round_to)
            for low, high, steps in zip(lowest, full, multiplicities, strict=True)
        ]
        longest = max(map(len, ladders), default=1)
        padded = np.array([ladder + [ladder[-1]] * (longest - len(ladder)) for ladder in ladders], dtype=np.int64)
        return Lattice(
            ladders=padded.reshape(len(ladders), longest),
            top=np.array([len(ladder) - 1 for ladder in ladders], dtype=np.int64),
            channels=channels,
            minimum=np.array([floor.minimum for floor in shared], dtype=np.int64),
        )

    def widths(self, levels: np.ndarray) -> np.ndarray:
        """Components that every group keeps."""
        return self.ladders[np.arange(len(levels)), levels]

    def holds_floors(self, levels: np.ndarray) -> bool:
        return not len(self.minimum) or bool((self.channels @ self.widths(levels) >= self.minimum).all())

    def sharing_groups(self) -> list[int]:
        """Groups that hold a shared floor; all others can stand on their lowest rung whatever the rest does."""
        return np.flatnonzero(self.channels.any(axis=0)).tolist()

    def lowest_levels(self, levels: np.ndarray) -> np.ndarray:
        """For every group, the lowest rung that it may stand on while all others stay where they are."""
        widths = self.widths(levels)
        slack = self.channels @ widths - self.minimum
        spare = np.where(self.channels > 0, slack[:, None] // np.maximum(self.channels, 1), _ANY)
        needed = widths - spare.min(axis=0, initial=_ANY)
        return (self.ladders < needed[:, None]).sum(axis=1)


@dataclass(frozen=True)
class _Floor:
    """One layer's floor: Σ channels[g] × widths[g] >= minimum."""

    channels: dict[int, int]
    minimum: int

    @staticmethod
    def of(layer: LayerWidth, options: PlanOptions) -> _Floor:
        channels: dict[int, int] = {}
        for group, per_component in layer.terms:
            channels[group] = channels.get(group, 0) + per_component
        return _Floor(channels, options.floor(layer.width) - layer.fixed)

    def fewest(self, group: int, full: np.ndarray) -> int:
        """Components that `group` must keep even when all other groups of the layer are full."""
        others = sum(count * int(full[g]) for g, count in self.channels.items() if g != group)
        return max(0, math.ceil((self.minimum - others) / self.channels[group]))

    def held_by(self, widths: np.ndarray) -> bool:
        return sum(count * int(widths[g]) for g, count in self.channels.items()) >= self.minimum


def _ladder(lowest: int, full: int, multiplicities: Iterable[int], round_to: int) -> list[int]:
    """Widths from `lowest` to `full` that make multiples of `round_to` channels in all of the group's layers.

    A group too narrow for any such width below its own takes the largest divisor of `round_to` that leaves a choice.
    """
    multiplicities = list(multiplicities)
    for multiple in range(round_to, 0, -1):
        if round_to % multiple:
            continue
        step = math.lcm(*(multiple // math.gcd(multiple, count) for count in multiplicities))
        first = -(-lowest // step) * step
        if first < full:
            return [*range(first, full, step), full]
    return [full]
