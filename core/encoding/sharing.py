"""Sharing: which values the kernels share, at so many levels or within so many bytes, and who gets which.

    curves ── allocate ── round ── write ── adjust ── round so that layers make up for each other ── adjust

Where there are images, kernels are rounded by `compensation`, whose indices take a little more room than those of weights
rounded one by one; so the cap is first landed on without it, which takes no time, and then moved by what it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from core.encoding.allocation import allocate, curve
from core.encoding.kernels import Choice, Group, Shared
from core.encoding.options import DEFAULT_LEVELS, EncodingOptions
from core.encoding.quantized import QuantizedTensor
from core.encoding.quantizers import MOST_LEVELS, quantizer
from core.network import Network

Size = Callable[[Shared], int]
Rounding = Callable[[Sequence[Choice]], Shared]

# A file between these shares of its cap has landed.
_LANDED = 0.985
_ATTEMPTS = 10
# What is aimed at, of a cap.
_AIM = 0.997
# Roundings that layers make up for: each takes seconds.
_COMPENSATIONS = 3


def choices_at(groups: Sequence[Group], options: EncodingOptions) -> list[Choice]:
    """Every group with at most the asked-for number of shared values."""
    levels = options.levels or DEFAULT_LEVELS
    return [
        (group, None if group.values is None else quantizer(options.quantizer, group.values, levels).at_levels(levels))
        for group in groups
    ]


def rounded(network: Network, choices: Sequence[Choice], seed: int) -> Shared:
    """Every weight by itself."""
    found: dict[str, QuantizedTensor] = {}
    for index, (group, levels) in enumerate(choices):
        found.update(group.quantized(levels, seed + index))
    return Shared.of(network, found)


class Landing:
    """Allocations of bits to groups whose file, as `size` measures it, is at or just under a limit."""

    def __init__(
        self,
        network: Network,
        groups: Sequence[Group],
        options: EncodingOptions,
        sensitivity: Mapping[str, float],
        size: Size,
        limit: int,
    ) -> None:
        self._network, self._groups, self._size, self._limit = network, groups, size, limit
        most = options.levels or MOST_LEVELS
        self._curves = [curve(group, options.quantizer, most, sensitivity) for group in groups]
        self._bounds = [sum(pick(one.bits for one in points) for points in self._curves) for pick in (min, max)]

    def rounded(self, seed: int) -> Shared:
        """The best allocation found with every weight rounded by itself; the smallest file where none fits."""
        return self._landed(seed, self._limit)[1]

    def compensated(self, seed: int, compensate: Rounding) -> Shared | None:
        """The same with kernels rounded by `compensate`; None where none fits."""
        aim = self._limit
        best: tuple[int, Shared] | None = None
        for _ in range(_COMPENSATIONS):
            choices, _, plain = self._landed(seed, aim)
            found = compensate(choices)
            reached = self._size(found)
            if reached <= self._limit and (best is None or reached > best[0]):
                best = (reached, found)
            if _LANDED * self._limit <= reached <= self._limit or plain < _LANDED * aim:
                break
            aim = int(aim * _AIM * self._limit / reached)
        return None if best is None else best[1]

    def _landed(self, seed: int, limit: int) -> tuple[list[Choice], Shared, int]:
        """The best choices found within the limit, rounded, and the bytes of their file; else the cheapest."""
        cheapest, dearest = self._bounds
        best = self._at(cheapest, seed)
        if best[2] > limit:
            return best
        # What else is in the file hardly changes, so a byte more for indices is a byte more of file.
        low, high = cheapest, dearest
        bits = min(high, low + 8 * (limit - best[2]))
        for _ in range(_ATTEMPTS):
            tried = self._at(bits, seed)
            if tried[2] <= limit:
                low = bits
                if tried[2] > best[2]:
                    best = tried
                if best[2] >= _LANDED * limit or bits >= dearest:
                    break
            else:
                high = bits
            step = bits + 8 * (_AIM * limit - tried[2])
            bits = step if low < step < high else (low + high) / 2
        return best

    def _at(self, bits: float, seed: int) -> tuple[list[Choice], Shared, int]:
        points = allocate(self._curves, bits)
        choices = [(group, point.levels) for group, point in zip(self._groups, points, strict=True)]
        found = rounded(self._network, choices, seed)
        return choices, found, self._size(found)
