"""No plan and no choice of channels leaves an axis without positions, whatever brings the axis in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.analysis import analyse
from core.budget import Budget, Cap
from core.measure import independent_costs
from core.methods import get_method
from core.network import Network
from core.planning import plan_widths
from core.surgery import apply, verify
from tests.core.channel_networks import export, random_keep


class WeightedSum(nn.Module):
    """The einsum's rows have no layer of their own, and the batch-norm behind them counts no products."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.rows = nn.Parameter(torch.randn(12, 8))
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("nchw,dc->ndhw", self.stem(x).relu(), self.rows)
        return self.head(self.norm(x).relu().mean((2, 3)))


class Copies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mix(x[:, :1].expand(-1, 6, -1, -1)).relu().mean((2, 3)))


class Constant(nn.Module):
    """Channels that nothing computes, joined to others and read alone as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.constant = nn.Parameter(torch.randn(1, 5, 8, 8))
        self.alone = nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(8 + 5 + 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        constant = self.constant.expand(x.shape[0], -1, -1, -1)
        x = torch.cat([self.stem(x), constant, self.alone(constant * x[:, :1])], 1)
        return self.head(x.relu().mean((2, 3)))


NETWORKS = {"einsum": WeightedSum, "expand": Copies, "constant": Constant}


def shapes(network: Network) -> list[tuple[int, ...]]:
    values = [node.meta.get("value") for node in network.graph.nodes]
    return [value.shape for value in values if hasattr(value, "shape")]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_choice_that_keeps_every_width_empties_an_axis(name):
    torch.manual_seed(0)
    network = export(NETWORKS[name](), 3, 8, 8)
    analysis = analyse(network)
    for seed in range(20):
        keep = random_keep(analysis, np.random.default_rng(seed), 0.1)
        pruned = apply(network, analysis, keep)
        assert all(min(shape, default=1) > 0 for shape in shapes(pruned))
        assert analysis.costs(analysis.widths(keep)) == independent_costs(pruned)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_plan_keeps_the_floor_of_every_axis(name):
    torch.manual_seed(0)
    network = export(NETWORKS[name](), 3, 8, 8)
    analysis = analyse(network)
    method = get_method("magnitude")
    config = method.config({"min_channels": 2})
    full = analysis.costs(analysis.full_widths)
    for ratio in (0.45, 0.6):
        plan = plan_widths(
            analysis,
            method.scores(network, analysis, config, 0),
            Budget((Cap("params", max_ratio=ratio),)).constraints(full),
            method.plan_options(config),
        )
        pruned = apply(network, analysis, plan.keep)
        for before, after in zip(network.tensors.values(), pruned.tensors.values(), strict=True):
            assert all(now >= min(2, was) for was, now in zip(before.shape, after.shape, strict=True))
        assert verify(network, analysis, plan.keep, pruned, seed=0).passed
