"""An optimiser's state and the random state as plain values and tensors, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.checkpoint import Saved

_OPTIMIZER, _RANDOM = "optimizer", "random"


def pack(
    values: dict[str, Any], tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`values` and `tensors` (named `part/name`) with what the optimiser and torch's own generators hold."""
    numbers: dict[str, Any] = {}
    tensors = dict(tensors)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}/{index}.{key}"] = value
            else:
                numbers[f"{index}.{key}"] = value
    tensors[f"{_RANDOM}/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors[f"{_RANDOM}/cuda"] = torch.cuda.get_rng_state(device)
    return {**values, _OPTIMIZER: numbers}, tensors


def unpack(
    saved: Saved, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The values and, by part, the tensors that `pack` was given; the optimiser and the generators are set to theirs."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in saved.tensors.items():
        part, _, own = name.partition("/")
        parts.setdefault(part, {})[own] = tensor
    random = parts.pop(_RANDOM)
    torch.set_rng_state(random["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], device)
    whole = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**saved.values[_OPTIMIZER], **parts.pop(_OPTIMIZER, {})}.items():
        index, _, key = name.partition(".")
        held = state.setdefault(int(index), {})
        parameter = parameters[int(index)]
        # A file keeps no strides; a sum over other strides might round otherwise.
        alike = isinstance(value, Tensor) and value.shape == parameter.shape
        held[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach() if alike else value
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    return dict(saved.values), parts
