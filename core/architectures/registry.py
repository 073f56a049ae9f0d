"""Named architectures: which network a state_dict belongs to.

A state_dict holds weights under names and says nothing of how they are connected, so the user names the architecture.
Everything that the weights' own shapes tell (classes, channels, depth) is inferred; what the user gives wins.

A family is one module of this package with a tuple `ARCHITECTURES`; it is found by being there.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.architectures.arguments import check_args
from core.architectures.matching import Mismatch, compare
from core.errors import EngineError

Args = Mapping[str, Any]
State = Mapping[str, Tensor]

_INFRASTRUCTURE = frozenset({"arguments", "matching", "registry"})


@dataclass(frozen=True)
class Architecture:
    """One name that a user can give.

    args_schema: JSON schema of `architecture_args`, with a default for every property that is not inferred alone.
    infer: (state_dict, arguments given by the user) → arguments that the shapes tell and that agree with the given
    ones; never raises, leaves out what it cannot tell.
    construct: the module for complete arguments; raises ValueError where they contradict each other.
    input_shape: shape of one input, without the batch dimension, for complete arguments.
    """

    name: str
    title: str
    args_schema: Mapping[str, Any]
    infer: Callable[[State, Args], dict[str, Any]]
    construct: Callable[[Args], nn.Module]
    input_shape: Callable[[Args], tuple[int, ...]]

    def defaults(self) -> dict[str, Any]:
        properties = self.args_schema["properties"]
        return {name: schema["default"] for name, schema in properties.items() if "default" in schema}


@dataclass(frozen=True)
class ArchitectureInfo:
    """What the catalogue tells of an architecture; `input_shape` is the one for default arguments."""

    name: str
    title: str
    input_shape: tuple[int, ...]
    args_schema: dict[str, Any]


@functools.cache
def _architectures() -> Mapping[str, Architecture]:
    package = importlib.import_module("core.architectures")
    found: dict[str, Architecture] = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        if module.name in _INFRASTRUCTURE:
            continue
        for architecture in importlib.import_module(f"core.architectures.{module.name}").ARCHITECTURES:
            if architecture.name in found:
                raise ValueError(f"two architectures are named {architecture.name!r}")
            found[architecture.name] = architecture
    return found


def architecture_infos() -> list[ArchitectureInfo]:
    """Every registered architecture, in the order in which a person would list them."""
    return [
        ArchitectureInfo(
            name=architecture.name,
            title=architecture.title,
            input_shape=architecture.input_shape(architecture.defaults()),
            args_schema=dict(architecture.args_schema),
        )
        for architecture in _architectures().values()
    ]


def get_architecture(name: str) -> Architecture:
    """Raises EngineError("unknown_architecture") with the nearest names."""
    architectures = _architectures()
    if name in architectures:
        return architectures[name]
    nearest = difflib.get_close_matches(name.lower(), architectures, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    raise EngineError(
        "unknown_architecture",
        f"There is no architecture named {name[:80]!r}. {hint}Known: {', '.join(architectures)}.",
        param="/architecture",
        details={"nearest": nearest, "known": list(architectures)},
    )


def resolve_args(name: str, args: Args, state: State | None = None) -> dict[str, Any]:
    """Complete arguments: given by the user, else inferred from the shapes in `state`, else the default."""
    architecture = get_architecture(name)
    check_args(name, architecture.args_schema, args)
    inferred = architecture.infer(state, args) if state is not None else {}
    return {**architecture.defaults(), **inferred, **args}


def build(name: str, args: Args, state: State | None = None) -> nn.Module:
    """A freshly initialised module of a registered architecture; `state` only serves to infer arguments.

    Raises EngineError: unknown_architecture for the name, architecture_mismatch for arguments that cannot be.
    """
    resolved = resolve_args(name, args, state)
    try:
        return get_architecture(name).construct(resolved)
    except ValueError as error:
        raise EngineError("architecture_mismatch", f"{name}: {error}", param="/architecture_args") from error


def fitting_architectures(state: State) -> list[str]:
    """Names whose keys and shapes are exactly those of `state`."""
    return [name for name in _architectures() if not mismatch(name, {}, state)]


def mismatch(name: str, args: Args, state: State) -> Mismatch:
    """How `state` differs from the architecture, whose arguments are inferred from it as far as they can be."""
    with torch.device("meta"):
        module = build(name, args, state)
    return compare(module.state_dict(), state)
