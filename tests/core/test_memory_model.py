"""The predicted peak of live buffers agrees with an execution that really allocates and frees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.analysis import analyse, profile
from core.surgery import apply
from tests.core.channel_networks import CifarResNet, InvertedResidual, ShuffleAndDense, Vgg, export, random_keep
from tests.core.instrumented_memory import measured_peak


class Branches(nn.Module):
    """An input that is read twice, an activation that must not be overwritten, dropout, views of one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 1)
        self.drop = nn.Dropout2d()
        self.head = nn.Linear(6 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = F.relu(a)
        c = self.drop(b) * 2 + a
        tokens = c.flatten(2).transpose(1, 2)
        d = torch.sigmoid(self.second(c)) + self.first(torch.tanh(x))
        return self.head((tokens + d.flatten(2).transpose(1, 2)).reshape(-1, 6 * 64))


CASES = {
    "resnet": (CifarResNet, (3, 16, 16)),
    "vgg": (Vgg, (3, 12, 12)),
    "inverted residual": (InvertedResidual, (3, 16, 16)),
    "shuffle and dense": (ShuffleAndDense, (3, 6, 6)),
    "branches": (Branches, (3, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_peak_equals_an_instrumented_run_before_and_after_pruning(name):
    torch.manual_seed(0)
    build, shape = CASES[name]
    network = export(build(), *shape)
    analysis = analyse(network)
    assert profile(network).costs.peak_activation_bytes == measured_peak(network)
    for seed in range(3):
        keep = random_keep(analysis, np.random.default_rng(seed))
        pruned = apply(network, analysis, keep)
        assert analysis.costs(analysis.widths(keep)).peak_activation_bytes == measured_peak(pruned)


def test_resnet20_peaks_at_three_full_size_maps():
    network = export(CifarResNet(blocks=3), 3, 32, 32)
    assert profile(network).costs.peak_activation_bytes == 3 * 16 * 32 * 32 * 4
