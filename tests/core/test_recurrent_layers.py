"""Recurrent layers keep their widths; what lies around them is pruned, verified and counted like anywhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor, nn

from core.agreement import require_agreement
from core.analysis import analyse, profile
from core.surgery import apply, verify
from tests.core.channel_networks import export, random_keep

HIDDEN, FEATURES, STEPS = 5, 8, 6


class Sequence(nn.Module):
    """conv → hidden conv → columns as a sequence → recurrent layer → linear."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.features = nn.Conv2d(12, FEATURES, 3, padding=1)
        self.recurrent = layer
        self.hidden = nn.Linear(HIDDEN, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(self.stem(x).relu()).mean(2).transpose(1, 2)
        return self.head(self.hidden(self.recurrent(columns)[0].mean(1)).relu())


@pytest.mark.parametrize(
    ("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=["lstm", "gru", "plain recurrence"]
)
def test_a_network_with_a_recurrent_layer_is_counted_pruned_and_verified(layer, gates):
    network = export(Sequence(layer(FEATURES, HIDDEN, batch_first=True)), 3, 6, STEPS)
    analysis = analyse(network)
    assert analysis.faults == ()
    recurrent = gates * HIDDEN * (FEATURES + HIDDEN) * STEPS
    around = 36 * (3 * 12 + 12 * FEATURES) * 9 + HIDDEN * 10 + 10 * 4
    assert profile(network).costs.macs == recurrent + around
    require_agreement(network, profile(network).costs, "The profile")
    # The widths that the recurrent layer does not read: the stem's and the hidden linear layer's.
    assert sorted(len(group.components) for group in analysis.groups) == [10, 12]
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    result = verify(network, analysis, keep, pruned)
    assert result.passed, result
    assert result.max_relative_error < 1e-12
    require_agreement(pruned, analysis.costs(analysis.widths(keep)), "The plan")


def test_a_wrong_recurrent_result_is_found():
    network = export(Sequence(nn.GRU(FEATURES, HIDDEN, batch_first=True)), 3, 6, STEPS)
    analysis = analyse(network)
    keep = random_keep(analysis, np.random.default_rng(1))
    pruned = apply(network, analysis, keep)
    name = "recurrent.weight_hh_l0"
    wrong = replace(pruned, tensors={**pruned.tensors, name: 1.01 * pruned.tensors[name]})
    assert not verify(network, analysis, keep, wrong).passed
