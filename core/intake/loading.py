"""From an uploaded file to a `Network`."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.architectures import Architecture, compare, fitting_architectures, get_architecture
from core.errors import EngineError
from core.intake.formats import sniff
from core.intake.onnx import read_onnx
from core.intake.pt2 import holds_program, read_pt2
from core.intake.safetensors_file import PRUNED_MARK
from core.intake.state_dict import StateDict, read_file, read_state_dict
from core.intake.zip_file import open_archive
from core.network import Network

INPUT_NAME = "input"
MAX_INPUT_ELEMENTS = 2**26
ALTERNATIVES = 4
Format = Literal["state_dict", "onnx", "pt2"]
_READERS = {"onnx": read_onnx, "pt2": read_pt2}
_CALLED = {"onnx": "An ONNX file", "pt2": "A .pt2 file"}


def load_network(
    path: Path,
    *,
    architecture: str | None,
    architecture_args: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
) -> Network:
    """Read an ONNX graph or an exported program; or match a checkpoint with a registered architecture and export that.

    architecture_args: what the weights' shapes do not tell, or what is meant to be checked. input_shape: of one input,
    without the batch dimension, or of each input by its name; by default the architecture's or the graph's own. Raises
    EngineError: those of `read_state_dict`, `read_onnx` and `read_pt2`, and unknown_architecture, architecture_mismatch, shape_mismatch.
    """
    named = get_architecture(architecture) if architecture is not None else None
    data = read_file(path)
    kind = _kind(data)
    if kind != "state_dict":
        return _from_graph(kind, data, architecture, input_shape)
    input_shape = _of_one_input(input_shape)
    state = read_state_dict(path)
    if named is None:
        raise _architecture_needed(state)
    if PRUNED_MARK.items() <= state.metadata.items():
        raise _already_pruned(named.name)
    given = _sized(named, architecture_args or {}, input_shape)
    args = named.resolve(given, state.tensors)
    module = named.build_empty(args)
    module, args, tensors = _matched(named, given, module, args, state)
    shape = _input_shape(named, args, input_shape)
    _load(module, tensors)
    network = Network.from_module(
        named.for_inference(module), {INPUT_NAME: shape}, architecture=named.name, architecture_args=args
    )
    _require_finite_outputs(network)
    return network


def file_format(path: Path) -> Format:
    """What kind of model a file holds, by its content."""
    return _kind(read_file(path))


def _kind(data: memoryview) -> Format:
    container = sniff(data)
    if container == "zip" and holds_program(open_archive(data)):
        return "pt2"
    return "onnx" if container == "onnx" else "state_dict"


def _from_graph(
    kind: Format,
    data: memoryview,
    architecture: str | None,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None,
) -> Network:
    if architecture is not None:
        raise EngineError(
            "architecture_mismatch",
            f"{_CALLED[kind]} says itself how its weights are connected; leave `architecture` out.",
            param="/architecture",
        )
    network = _READERS[kind](data, input_shape)
    _require_finite_outputs(network)
    return network


def _of_one_input(shape: Sequence[int] | Mapping[str, Sequence[int]] | None) -> tuple[int, ...] | None:
    """The shape of the one input that registered architectures have; a mapping may name it."""
    if isinstance(shape, Mapping):
        if set(shape) != {INPUT_NAME}:
            given = ", ".join(repr(name[:80]) for name in list(shape)[:8]) or "nothing"
            raise EngineError(
                "shape_mismatch",
                f"input_shape names {given}; the network has one input, called {INPUT_NAME!r}.",
                param="/input_shape",
            )
        shape = shape[INPUT_NAME]
    return tuple(shape) if shape is not None else None


def _sized(
    architecture: Architecture, given: Mapping[str, Any], input_shape: Sequence[int] | None
) -> Mapping[str, Any]:
    """The given arguments, with the image size from the input shape where the architecture must know it."""
    argument = architecture.size_argument
    if argument is None or argument in given or input_shape is None or len(input_shape) < 3:
        return given
    size = list(input_shape[-2:])
    if architecture.args_schema["properties"][argument]["type"] == "integer":
        if size[0] != size[1]:
            raise EngineError(
                "shape_mismatch",
                f"{architecture.name} takes square images only, and input_shape is {list(input_shape)[:8]}.",
                param="/input_shape",
            )
        return {**given, argument: size[0]}
    return {**given, argument: size}


def _matched(
    architecture: Architecture, given: Mapping[str, Any], module: nn.Module, args: Mapping[str, Any], state: StateDict
) -> tuple[nn.Module, Mapping[str, Any], Mapping[str, Tensor]]:
    """The module that the weights fit, its arguments, and the weights under its names. Raises EngineError."""
    found = compare(module.state_dict(), state.tensors)
    if not found:
        return module, args, state.tensors
    renamed = architecture.renamed(module, state.tensors)
    if renamed.keys() != state.tensors.keys():
        again = architecture.resolve(given, renamed)
        if again != args:
            module = architecture.build_empty(again)
        if not compare(module.state_dict(), renamed):
            return module, again, renamed
    raise _mismatch(architecture.name, state, str(found), found.as_dict())


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the weights in place; batch-norm counters that old checkpoints lack are zero."""
    expected = module.state_dict()
    counters = {
        name: torch.zeros_like(tensor, device="cpu") for name, tensor in expected.items() if name not in tensors
    }
    complete = OrderedDict({**tensors, **counters})
    # Names are today's: the versions in here keep the modules from translating them again.
    complete._metadata = expected._metadata
    module.load_state_dict(complete, assign=True)


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
        f"These weights fit {_alternatives(fitting)}."
        if fitting
        else f"No registered architecture has these names and shapes (the first: {keys})."
    )
    return EngineError(
        "unknown_architecture",
        f"A state_dict holds weights and not how they are connected, so `architecture` is needed. {hint}",
        param="/architecture",
        details={"fitting": fitting},
    )


def _alternatives(names: Sequence[str]) -> str:
    """`torchvision:resnet18 (also timm:resnet18)`: names and shapes alone cannot tell some networks apart."""
    first, *others = names
    if not others:
        return first
    rest = f" and {len(others) - ALTERNATIVES} more" if len(others) > ALTERNATIVES else ""
    return f"{first} (also {', '.join(others[:ALTERNATIVES])}{rest})"


def _mismatch(architecture: str, state: StateDict, listing: str, details: Mapping[str, Any]) -> EngineError:
    fitting = fitting_architectures(state.tensors)
    hint = f" They fit {_alternatives(fitting)}." if fitting else ""
    return EngineError(
        "architecture_mismatch",
        f"The weights are not those of {architecture}: {listing}.{hint}",
        param="/architecture",
        details={**details, "fitting": fitting},
    )


def _input_shape(architecture: Architecture, args: Mapping[str, Any], given: Sequence[int] | None) -> tuple[int, ...]:
    default = architecture.input_shape(args)
    if given is None:
        return default
    shape = tuple(given)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
    if not whole or len(shape) != len(default) or shape[0] != default[0]:
        raise EngineError(
            "shape_mismatch",
            f"input_shape is {list(shape)[:8]}; {architecture.name} with these weights expects {default[0]} channels, "
            f"[{', '.join([str(default[0]), *('frames', 'height', 'width')[4 - len(default) :]])}] without the batch dimension, e.g. {list(default)}.",
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
