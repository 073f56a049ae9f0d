"""An exponential moving average of a module's weights, which is smoother than the last step's.

The decay begins low, (1 + t) / (10 + t) after t steps, so that the average forgets where training began. Running
statistics are averaged like weights; counters are copied.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """module: the averaged one, in evaluation mode."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        decay = min(self._decay, (2 + step) / (11 + step))
        for mean, value in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
