"""From an uploaded file to a `Network`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core.architectures import (
    build,
    compare,
    fitting_architectures,
    get_architecture,
    resolve_args,
)
from core.errors import EngineError
from core.intake.safetensors_file import PRUNED_MARK
from core.intake.state_dict import StateDict, read_state_dict
from core.network import Network

INPUT_NAME = "input"
MAX_INPUT_ELEMENTS = 2**26


def load_network(
    path: Path,
    *,
    architecture: str | None,
    architecture_args: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
) -> Network:
    """Read a checkpoint, match it with a registered architecture and export it.

    architecture_args: what the weights' shapes do not tell, or what is meant to be checked. input_shape: of one input,
    without the batch dimension; by default the architecture's own. Raises EngineError: those of `read_state_dict`, and
    unknown_architecture, architecture_mismatch, shape_mismatch.
    """
    if architecture is not None:
        get_architecture(architecture)
    state = read_state_dict(path)
    if architecture is None:
        raise _architecture_needed(state)
    if PRUNED_MARK.items() <= state.metadata.items():
        raise _already_pruned(architecture)
    args = resolve_args(architecture, architecture_args or {}, state.tensors)
    with torch.device("meta"):
        module = build(architecture, args)
    expected = module.state_dict()
    found = compare(expected, state.tensors)
    if found:
        raise _mismatch(architecture, state, str(found), found.as_dict())
    shape = _input_shape(architecture, args, input_shape)
    counters = {
        name: torch.zeros_like(tensor, device="cpu") for name, tensor in expected.items() if name not in state.tensors
    }
    module.load_state_dict({**state.tensors, **counters}, assign=True)
    network = Network.from_module(module, {INPUT_NAME: shape}, architecture=architecture, architecture_args=args)
    _require_finite_outputs(network)
    return network


def _require_finite_outputs(network: Network) -> None:
    """Weights can be finite one by one and still overflow together; then nothing about the network can be checked."""
    for name, tensor in network.tensors.items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise EngineError("invalid_model", f"{name} has negative variances; the checkpoint is damaged.")
    outputs = network.run(*network.random_inputs(batch=2, seed=0))
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise EngineError(
            "invalid_model",
            "The network's own outputs are not finite for standard-normal inputs: its weights overflow float32. Check "
            "that this is the checkpoint of the trained network.",
        )


def _already_pruned(architecture: str) -> EngineError:
    """Padding and splits inside a pruned network need not be the architecture's, even where every shape is."""
    return EngineError(
        "architecture_mismatch",
        f"These weights were delivered by Pennyweight and belong to the pruned network in the `model.py` beside them, not "
        f"to {architecture}, even where names and shapes fit. Compress the original checkpoint again with a smaller budget.",
        param="/architecture",
    )


def _architecture_needed(state: StateDict) -> EngineError:
    fitting = fitting_architectures(state.tensors)
    keys = ", ".join(name[:80] for name in list(state.tensors)[:5])
    hint = (
        f"These weights fit: {', '.join(fitting)}."
        if fitting
        else f"No registered architecture has these names and shapes (the first: {keys})."
    )
    return EngineError(
        "unknown_architecture",
        f"A state_dict holds weights and not how they are connected, so `architecture` is needed. {hint}",
        param="/architecture",
        details={"fitting": fitting},
    )


def _mismatch(architecture: str, state: StateDict, listing: str, details: Mapping[str, Any]) -> EngineError:
    fitting = fitting_architectures(state.tensors)
    hint = f" They fit: {', '.join(fitting)}." if fitting else ""
    return EngineError(
        "architecture_mismatch",
        f"The weights are not those of {architecture}: {listing}.{hint}",
        param="/architecture",
        details={**details, "fitting": fitting},
    )


def _input_shape(architecture: str, args: Mapping[str, Any], given: Sequence[int] | None) -> tuple[int, ...]:
    default = get_architecture(architecture).input_shape(args)
    if given is None:
        return default
    shape = tuple(given)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
    if not whole or len(shape) != len(default) or shape[0] != default[0]:
        raise EngineError(
            "shape_mismatch",
            f"input_shape is {list(shape)[:8]}; {architecture} with these weights expects {default[0]} channels, "
            f"[{default[0]}, height, width] without the batch dimension, e.g. {list(default)}.",
            param="/input_shape",
            details={"expected_channels": default[0], "default": list(default)},
        )
    if math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise EngineError(
            "shape_mismatch",
            f"input_shape {list(shape)} has {math.prod(shape)} elements; at most {MAX_INPUT_ELEMENTS} are analysed.",
            param="/input_shape",
        )
    return shape
