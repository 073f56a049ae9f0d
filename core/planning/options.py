"""What a user may say about the shape of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_DEFAULT_SMALLEST = 4
_DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class LayerLimits:
    """One layer's own limits. freeze: all output channels stay. min, max: bounds of its width, instead of its floor."""

    name: str
    freeze: bool = False
    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        if not self.freeze and self.min is None and self.max is None:
            raise ValueError("give freeze, min or max")
        if self.freeze and (self.min is not None or self.max is not None):
            raise ValueError("give freeze alone, or min and max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")


@dataclass(frozen=True)
class PlanOptions:
    """min_channels: floor of every layer, None = min(width, max(4, ⌈10 %⌉)). round_to: widths fall in multiples of it.

    ranking: `global` lets the scores decide how much each group gives, `per_layer` takes the same share of every group;
    `as_scored` compares the scores of different groups as they are.
    survivors: whether statistics over channels may run over those that are left: only where the budget is out of reach
    without (`auto`), never, or always. layers: limits of single layers, by name.
    """

    min_channels: int | None = None
    round_to: int = 1
    ranking: Literal["global", "per_layer", "as_scored"] = "global"
    survivors: Literal["auto", "never", "always"] = "auto"
    layers: tuple[LayerLimits, ...] = ()

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
