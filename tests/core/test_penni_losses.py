"""What columns are worth, against least squares solved without each of them, and the order that follows from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.analysis import profile
from core.budget import Budget, Cap
from core.network import Network
from core.penni.decomposition import SharedKernels, decompose
from core.penni.fitting import KernelSolver
from core.penni.losses import removal_losses, weight_losses
from core.penni.search import ColumnSearch
from core.penni.sites import sites
from core.recovery.refit import refit
from tests.core.penni_cases import network_of, seeded


def left_over(design: Tensor, target: Tensor) -> float:
    """Squared error of the best fit."""
    return float((design @ torch.linalg.lstsq(design, target).solution - target).square().sum())


def test_the_loss_is_what_the_best_fit_of_the_others_leaves_over():
    generator = torch.Generator().manual_seed(0)
    # Three inputs with two kernels each, one column dead; maps that have much in common.
    maps = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    maps = maps @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
    live = torch.tensor([True, True, False, True, True, True])
    target = maps @ torch.randn(6, 4, generator=generator, dtype=torch.float64)
    design = maps[:, live]
    coefficients = torch.zeros(4, 6, dtype=torch.float64)
    coefficients[:, live] = torch.linalg.lstsq(design, target).solution.T
    shared = SharedKernels(coefficients.view(4, 3, 2), torch.eye(2, 9, dtype=torch.float64), (3, 3))
    found = removal_losses(shared, maps.T @ maps, target.square().sum()).flatten()
    assert found[2] == 0
    for column, at in enumerate(live.nonzero()[:, 0]):
        others = [one for one in range(design.shape[1]) if one != column]
        grown = left_over(design[:, others], target) - left_over(design, target)
        assert float(found[at]) == pytest.approx(grown / float(target.square().sum()), rel=0.02)
    # In whatever units the maps are.
    small = SharedKernels(1e3 * shared.coefficients, shared.basis, shared.kernel)
    scaled = removal_losses(small, 1e-6 * maps.T @ maps, target.square().sum()).flatten()
    assert scaled.tolist() == pytest.approx(found.tolist())


def test_a_column_that_another_says_as_well_is_worth_little_however_large_it_is():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    maps[:, 1] = maps[:, 0] + 0.01 * maps[:, 1]
    shared = SharedKernels(torch.tensor([[[5.0], [5.0], [1.0]]]), torch.eye(1, 9), (3, 3))
    target = maps @ shared.coefficients[0].double()
    found = removal_losses(shared, maps.T @ maps, target.square().sum()).flatten()
    assert float(found[:2].max()) < float(found[2])
    assert weight_losses(shared).flatten().tolist() == pytest.approx([25 / 51, 25 / 51, 1 / 51])


@pytest.mark.parametrize("silent", ["maps", "target"])
def test_where_nothing_is_said_nothing_is_worth_anything(silent):
    shared = decompose(torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)), 3)
    gram = torch.zeros(15, 15, dtype=torch.float64) if silent == "maps" else torch.eye(15, dtype=torch.float64)
    power = torch.tensor(0.0 if silent == "target" else 1.0, dtype=torch.float64)
    assert torch.equal(removal_losses(shared, gram, power), torch.zeros(5, 3, dtype=torch.float64))
    assert float(weight_losses(shared).sum()) == pytest.approx(1)


def test_a_channel_that_never_changes_leaves_the_others_what_they_are_worth():
    module = seeded(nn.Conv2d(6, 8, 3)).requires_grad_(False)
    network = Network.from_module(module, {"x": (6, 7, 7)})
    images = torch.relu(torch.randn(64, 6, 7, 7, generator=torch.Generator().manual_seed(0)))
    images[:, 2] = 0.3
    solver = KernelSolver(decompose(network.tensors["weight"], 5), 0, judging=True)
    refit(network, network, images, kept={}, solvers={"weight": solver})
    # With a bias, a constant is worth nothing.
    assert bool((solver.losses[2] < 1e-9).all())
    assert float(solver.losses[[0, 1, 3, 4, 5]].amin()) > 1e-6


def test_what_cannot_be_told_is_not_told():
    shared = decompose(torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)), 3)
    gram = -torch.eye(15, dtype=torch.float64) + 2 * torch.ones(15, 15, dtype=torch.float64)
    assert removal_losses(shared, gram, torch.ones((), dtype=torch.float64)) is None


@pytest.mark.parametrize("constant", [None, 0.0, 10.0])
def test_a_fit_says_what_its_columns_are_worth_whatever_the_bias(constant):
    generator = torch.Generator().manual_seed(0)
    module = seeded(nn.Conv2d(6, 8, 3, padding=1, bias=constant is not None)).requires_grad_(False)
    if constant is not None:
        module.bias.add_(constant)
    network = Network.from_module(module, {"x": (6, 7, 7)})
    noise = torch.randn(64, 6, 9, 9, generator=generator)
    images = torch.relu(nn.functional.avg_pool2d(noise + 2 * noise.mean(dim=1, keepdim=True), 3, stride=1))
    live = torch.rand(6, 4, generator=generator) < 0.6
    start = decompose(network.tensors["weight"], 4).with_columns(live)
    compressed = network.with_tensors({**network.tensors, "weight": start.weight()})
    solver = KernelSolver(start, 0, judging=True)
    refit(compressed, network, images, kept={}, solvers={"weight": solver})
    columns = live.nonzero()
    maps = [
        nn.functional.conv2d(images[:, c : c + 1], solver.shared.basis[b].view(1, 1, 3, 3), padding=1)
        for c, b in columns
    ]
    design = torch.stack(maps, -1).flatten(0, 3).double()
    target = network.run(images)[0].permute(0, 2, 3, 1).reshape(-1, 8).double()
    if constant is not None:
        design, target = design - design.mean(dim=0), target - target.mean(dim=0)
    assert bool((solver.losses[~live] == 0).all())
    for column, (c, b) in enumerate(columns):
        others = [one for one in range(design.shape[1]) if one != column]
        grown = left_over(design[:, others], target) - left_over(design, target)
        assert float(solver.losses[c, b]) == pytest.approx(grown / float(target.square().sum()), rel=0.05, abs=1e-4)


class Pooled(nn.Module):
    """Two like convolutions, the second on a quarter of the positions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = nn.functional.avg_pool2d(torch.relu(self.first(x)), 2)
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def landed(losses: dict[str, Tensor] | None, metric: str) -> tuple[int, int]:
    """Columns that are left of two layers with one weight, at 40 % of a count."""
    network = network_of(Pooled(), shape=(16, 8, 8))
    weight = network.tensors["first.weight"]
    network = network.with_tensors({**network.tensors, "second.weight": weight.clone()})
    found = sites(network)
    factors = {site.weight: decompose(weight, 5) for site in found}
    caps = Budget((Cap(metric, max_ratio=0.4),)).constraints(profile(network).costs)
    selection = ColumnSearch(network, found, factors, caps, 4, losses).land(caps)
    return int(selection.live["first.weight"].sum()), int(selection.live["second.weight"].sum())


def fitted(first: float = 1.0) -> dict[str, Tensor]:
    """What a fit might say of those layers; the first one's columns are worth so many times as much."""
    losses = weight_losses(decompose(network_of(Pooled(), shape=(16, 8, 8)).tensors["first.weight"], 5))
    return {"first.weight": first * losses, "second.weight": losses}


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_columns_are_held_against_what_they_cost(metric):
    first, second = landed(fitted(), metric)
    # The first layer has four times as many positions, and a parameter costs the same in both.
    assert first < 0.7 * second if metric == "macs" else abs(first - second) <= 4


def test_what_a_column_is_worth_decides_between_layers():
    first, second = landed(fitted(100.0), "params")
    assert first > 3 * second


def test_without_a_fit_a_layer_is_not_made_to_pay_for_its_positions():
    first, second = landed(None, "macs")
    assert abs(first - second) <= 4


def test_a_layer_that_was_not_fitted_is_compared_on_the_level_of_the_others():
    # What fits say sums to far less than 1, and a layer about which they say nothing must not outweigh all of it.
    first, second = landed({"second.weight": 0.01 * fitted()["second.weight"]}, "params")
    assert abs(first - second) <= 4


def test_of_two_caps_the_one_that_leaves_less_room_says_what_a_column_costs():
    network = network_of(Pooled(), shape=(16, 8, 8))
    found = sites(network)
    factors = {site.weight: decompose(network.tensors[site.weight], 5) for site in found}
    base = profile(network).costs
    order = {}
    for params, macs in ((0.4, 0.99), (0.99, 0.4)):
        caps = Budget((Cap("params", max_ratio=params), Cap("macs", max_ratio=macs))).constraints(base)
        live = ColumnSearch(network, found, factors, caps, 4, fitted()).land(caps).live
        order[params] = [int(live[name].sum()) if name in live else 80 for name in ("first.weight", "second.weight")]
    assert order[0.99][0] < order[0.4][0]
    assert order[0.99][1] > order[0.4][1]
