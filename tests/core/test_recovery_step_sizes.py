"""A step that does not depend on the gradient's size moves no layer further than it bears."""

import dataclasses

import pytest
import torch
from torch import nn

from core.recovery import RecoveryConfig
from core.recovery.optimizers import optimizer_for
from core.recovery.schedule import LARGEST_MOVE, Schedule, gentler, plan_schedule
from core.recovery.step_sizes import largest_rates
from tests.core.recovery_cases import plain_network


def pixels(*shape: int) -> torch.Tensor:
    return 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0))


def root_mean_square(value: torch.Tensor) -> float:
    return float(value.square().mean().sqrt())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 5))


def test_all_weights_moving_alike_move_an_output_by_its_share_at_most():
    module, x = network(), pixels(16, 3, 8, 8)
    rates = largest_rates(module, x, 0.3)
    value = x
    for name, layer in module.named_children():
        before = layer(value)
        if f"{name}.weight" in rates:
            for part in ("weight", "bias"):
                moved = layer(value)
                parameter = getattr(layer, part)
                with torch.no_grad():
                    kept = parameter.clone()
                    parameter += rates[f"{name}.{part}"]
                    # Borders and uneven channels let it be a little more than the mean says.
                    share = root_mean_square(layer(value) - moved) / root_mean_square(before)
                    parameter.copy_(kept)
                assert 0.01 < share < 2 * 0.1
        value = before
    assert set(rates) == {f"{name}.{part}" for name in ("0", "2", "4") for part in ("weight", "bias")}


def test_the_same_function_of_larger_inputs_takes_smaller_steps():
    module, x = network(), pixels(16, 3, 8, 8)
    on_fractions = largest_rates(module, x / 255, 0.5)
    with torch.no_grad():
        module[0].weight /= 255
    on_pixels = largest_rates(module, x, 0.5)
    assert on_pixels["0.weight"] == pytest.approx(on_fractions["0.weight"] / 255, rel=1e-3)
    others = [name for name in on_pixels if name != "0.weight"]
    assert [on_pixels[name] for name in others] == pytest.approx([on_fractions[name] for name in others], rel=1e-3)


def test_a_layer_that_is_silent_is_not_bounded():
    module = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
    assert largest_rates(module, -torch.ones(3, 4), 0.5) == {}


def test_bounded_parameters_have_groups_of_their_own_and_the_rest_stay():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    schedule = Schedule(1, 1, 1, 0.1, 0, True, False, optimizer="adamw", weight_decay=0.3)
    groups = optimizer_for(module, schedule, {"0.weight": 0.01, "0.bias": 0.02, "2.weight": 0.5}).param_groups
    assert [len(group["params"]) for group in groups] == [1, 3, 1, 1]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.3, 0.0]
    assert [group.get("share") for group in groups] == [None, None, pytest.approx(0.1), pytest.approx(0.2)]
    assert groups[2]["params"][0] is module[0].weight and groups[3]["params"][0] is module[0].bias


def test_only_a_rate_of_ours_is_bounded_and_a_gentler_schedule_is_gentler_in_both():
    def planned(**config):
        return plan_schedule(RecoveryConfig(**config), 640, plain_network(), plain_network(), torch.device("cpu"))

    chosen = planned(optimizer="adamw")
    assert chosen.largest_move == LARGEST_MOVE == chosen.as_dict()["largest_move"]
    assert planned(optimizer="adamw", learning_rate=0.01).largest_move is None is planned().largest_move
    softer = gentler(chosen, 0.1)
    assert softer.learning_rate == pytest.approx(0.1 * chosen.learning_rate)
    assert softer.largest_move == pytest.approx(0.1 * LARGEST_MOVE)
    rates = {"learning_rate": chosen.learning_rate, "largest_move": LARGEST_MOVE}
    assert dataclasses.replace(softer, **rates) == chosen
