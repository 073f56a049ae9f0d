"""Which parameters learn at which rate and which of them decay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from core.recovery.schedule import Schedule

MOMENTUM = 0.9


def optimizer_for(
    module: nn.Module, schedule: Schedule, largest: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """largest: by parameter name, the rate that is not to be exceeded; any for those that are not named."""
    groups = parameter_groups(module.parameters(), schedule.weight_decay)
    for name, parameter in module.named_parameters():
        share = (largest or {}).get(name, math.inf) / schedule.learning_rate
        if share < 1:
            groups.append(_taken_out(parameter, groups, share))
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0)
    return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Kernels and matrices decay; scales, shifts and biases do not."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _taken_out(parameter: nn.Parameter, groups: list[dict[str, Any]], share: float) -> dict[str, Any]:
    """The parameter as a group of its own, whose rate is a share of the schedule's."""
    (home,) = (group for group in groups if any(one is parameter for one in group["params"]))
    home["params"] = [one for one in home["params"] if one is not parameter]
    return {**home, "params": [parameter], "share": share}
