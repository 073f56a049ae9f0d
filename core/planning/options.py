"""What a user may say about the shape of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

_DEFAULT_SMALLEST = 4
_DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class PlanOptions:
    """min_channels: floor of every layer, None = min(width, max(4, ⌈10 %⌉)). round_to: widths fall in multiples of it."""

    min_channels: int | None = None
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.min_channels is not None and self.min_channels < 1:
            raise ValueError(f"min_channels must be at least 1, got {self.min_channels}")
        if self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {self.round_to}")

    def floor(self, width: int) -> int:
        """Fewest channels that a layer of `width` channels may keep."""
        if self.min_channels is not None:
            return min(width, self.min_channels)
        return min(width, max(_DEFAULT_SMALLEST, math.ceil(_DEFAULT_SHARE * width)))
