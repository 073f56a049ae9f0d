"""Lattice: the widths that a plan may choose from.

Every group has a **ladder** of widths from its floor to its full width, or to the most that a user allows; a plan
stands on one rung of each ladder, so a plan is an int64 vector of rung numbers (`levels`), and every cost falls or stays
when a level falls. Where the floor of a layer can be held by one group or another (pieces of a split, concatenated
channels), a **shared floor** remains as a linear condition on the widths; all other floors are the bottom of a ladder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.analysis import ChannelAnalysis
from core.planning.bounds import Bounds

# More components than any group has.
_ANY = 2**62


@dataclass(frozen=True, eq=False)
class Lattice:
    """ladders: int64 [groups, longest], widths ascending, padded with the last rung. top: int64 [groups], last rungs.

    Shared floors: `channels @ widths >= minimum`, channels int64 [shared floors, groups]. Shared ceilings of a user's own:
    `ceilings @ widths <= maximum`; like a cap they are met by going down.
    """

    ladders: np.ndarray
    top: np.ndarray
    channels: np.ndarray
    minimum: np.ndarray
    ceilings: np.ndarray
    maximum: np.ndarray

    @staticmethod
    def of(analysis: ChannelAnalysis, bounds: Bounds, round_to: int) -> Lattice:
        """All allowed widths within `bounds`."""
        multiplicities: list[set[int]] = [set() for _ in analysis.full_widths]
        for layer in analysis.layers:
            for group, channels in layer.terms:
                multiplicities[group].add(channels)
        # A limited group of rounded widths must still be able to hold its part of a shared floor.
        whole = (bounds.highest == analysis.full_widths) | bounds.floors.any(axis=0)
        ladders = [
            _ladder(int(low), int(high), steps, round_to, bool(with_highest))
            for low, high, steps, with_highest in zip(bounds.lowest, bounds.highest, multiplicities, whole, strict=True)
        ]
        longest = max(map(len, ladders), default=1)
        padded = np.array([ladder + [ladder[-1]] * (longest - len(ladder)) for ladder in ladders], dtype=np.int64)
        return Lattice(
            ladders=padded.reshape(len(ladders), longest),
            top=np.array([len(ladder) - 1 for ladder in ladders], dtype=np.int64),
            channels=bounds.floors,
            minimum=bounds.minimum,
            ceilings=bounds.ceilings,
            maximum=bounds.maximum,
        )

    def widths(self, levels: np.ndarray) -> np.ndarray:
        """Components that every group keeps."""
        return self.ladders[np.arange(len(levels)), levels]

    def holds_floors(self, levels: np.ndarray) -> bool:
        return not len(self.minimum) or bool((self.channels @ self.widths(levels) >= self.minimum).all())

    def holds_ceilings(self, levels: np.ndarray) -> bool:
        return not len(self.maximum) or bool((self.ceilings @ self.widths(levels) <= self.maximum).all())

    def ceiling_uses(self, levels: np.ndarray) -> list[float]:
        """Share of every shared ceiling that is used; above 1 it is missed."""
        return (self.ceilings @ self.widths(levels) / np.maximum(self.maximum, 1)).tolist()

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


def _ladder(lowest: int, highest: int, multiplicities: Iterable[int], round_to: int, with_highest: bool) -> list[int]:
    """Widths from `lowest` to `highest` that make multiples of `round_to` channels in all of the group's layers.

    with_highest: `highest` is one of them whatever its multiples, as the full width always is. A group too narrow for
    any such width below its highest takes the largest divisor of `round_to` that leaves a choice.
    """
    if lowest >= highest:
        return [highest]
    multiplicities = list(multiplicities)
    for multiple in range(round_to, 0, -1):
        if round_to % multiple:
            continue
        step = math.lcm(*(multiple // math.gcd(multiple, count) for count in multiplicities))
        first = -(-lowest // step) * step
        if first < highest + (not with_highest):
            rungs = [*range(first, highest + (not with_highest), step)]
            return [*rungs, highest] if with_highest else rungs
    return [highest]
