"""Floors: how thin a layer may become.

A removal *block* takes `block[g]` components of group g at once (more than one only with `round_to`). Removing one is
allowed while every layer that these channels belong to keeps its floor of channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.analysis import ChannelAnalysis

_DEFAULT_SMALLEST = 4
_DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class PlanOptions:
    """min_channels: floor of every layer, None = min(width, max(4, ⌈10 %⌉)). round_to: widths fall in multiples of it."""

    min_channels: int | None = None
    round_to: int = 1

    def floor(self, width: int) -> int:
        """Fewest channels that a layer of `width` channels may keep."""
        if self.min_channels is not None:
            return min(width, self.min_channels)
        return min(width, max(_DEFAULT_SMALLEST, math.ceil(_DEFAULT_SHARE * width)))


@dataclass(frozen=True, eq=False)
class Floors:
    """The floors of all layers as one linear system: `channels @ widths >= minimum`, channels int64 [layers, groups].

    block: int64 [groups], how many components leave or return at a time.
    """

    channels: np.ndarray
    minimum: np.ndarray
    block: np.ndarray

    @staticmethod
    def of(analysis: ChannelAnalysis, options: PlanOptions) -> Floors:
        layers = [layer for layer in analysis.layers if layer.terms]
        channels = np.zeros((len(layers), len(analysis.groups)), dtype=np.int64)
        for row, layer in enumerate(layers):
            for group, per_component in layer.terms:
                channels[row, group] += per_component
        minimum = np.array([options.floor(layer.width) - layer.fixed for layer in layers], dtype=np.int64)
        return Floors(channels, minimum, _blocks(channels, options.round_to))

    def slack(self, widths: np.ndarray) -> np.ndarray:
        """Channels that each layer has above its floor."""
        return self.channels @ widths - self.minimum

    def removable(self, widths: np.ndarray, group: int) -> bool:
        """Whether one more block of `group` may go."""
        block = self.block[group]
        return bool(
            widths[group] >= block
            and (self.slack(widths) >= block * self.channels[:, group])[self.channels[:, group] > 0].all()
        )


def _blocks(channels: np.ndarray, round_to: int) -> np.ndarray:
    """Components per step, so that every layer of the group moves in multiples of `round_to` channels."""
    blocks = np.ones(channels.shape[1], dtype=np.int64)
    for group in range(channels.shape[1]):
        for per_component in channels[:, group][channels[:, group] > 0]:
            blocks[group] = math.lcm(int(blocks[group]), round_to // math.gcd(round_to, int(per_component)))
    return blocks
