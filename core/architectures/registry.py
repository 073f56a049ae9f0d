"""Named architectures: which network a state_dict belongs to.

A state_dict holds weights under names and says nothing of how they are connected, so the user names the architecture.
Everything that the weights' own shapes tell (classes, channels, depth) is inferred; what the user gives wins.

A family is one module of `core.architectures.families` with a `FAMILY`; it is found by being there.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

import core.architectures.families
from core.architectures.family import Architecture, Args, Family, State
from core.architectures.matching import Mismatch, compare
from core.errors import EngineError

_NEAREST = 5
_LISTED = 20


@dataclass(frozen=True)
class ArchitectureInfo:
    """What the catalogue tells of an architecture; `input_shape` is the one for default arguments."""

    name: str
    title: str
    input_shape: tuple[int, ...]
    args_schema: dict[str, Any]


@functools.cache
def _families() -> tuple[Family, ...]:
    """The smallest first: what is here for a purpose is the likelier meaning of a name or a state_dict."""
    package = core.architectures.families
    modules = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    found = [importlib.import_module(f"{package.__name__}.{module}").FAMILY for module in modules]
    return tuple(sorted(found, key=lambda family: len(family.names())))


@functools.cache
def _owners() -> Mapping[str, Family]:
    """Every name and the family that it belongs to."""
    found: dict[str, Family] = {}
    for family in _families():
        for name in family.names():
            if name in found:
                raise ValueError(f"two architectures are named {name!r}")
            found[name] = family
    return found


def architecture_infos() -> list[ArchitectureInfo]:
    """Every registered architecture, in the order in which a person would list them."""
    architectures = (family.get(name) for name, family in _owners().items())
    return [
        ArchitectureInfo(
            name=architecture.name,
            title=architecture.title,
            input_shape=architecture.input_shape(architecture.defaults()),
            args_schema=dict(architecture.args_schema),
        )
        for architecture in architectures
    ]


def get_architecture(name: str) -> Architecture:
    """Raises EngineError("unknown_architecture") with the nearest names."""
    owners = _owners()
    if name in owners:
        return owners[name].get(name)
    nearest = nearest_names(name)
    hint = f"Did you mean {' or '.join(nearest)}?" if nearest else f"Known: {_some(list(owners))}."
    raise EngineError(
        "unknown_architecture",
        f"There is no architecture named {name[:80]!r}. {hint}",
        param="/architecture",
        details={"nearest": nearest, "known": len(owners)},
    )


def nearest_names(name: str) -> list[str]:
    """The names that `name` may be meant for, the likeliest first.

    A library's own spelling counts as its name: `resnet50`, `timm/resnet50.a1_in1k` and `ResNet-50` all lead to
    `torchvision:resnet50` and `timm:resnet50`.
    """
    written = name.strip().casefold()
    bare = written.rpartition(":")[2].rpartition("/")[2]
    spellings = [_letters(bare), _letters(bare.partition(".")[0])]
    exact: list[str] = []
    by_letters: dict[str, list[str]] = {}
    for known in _owners():
        letters = _letters(known.rpartition(":")[2])
        by_letters.setdefault(letters, []).append(known)
        if letters in spellings:
            exact.append(known)
    close = [
        known
        for letters in difflib.get_close_matches(spellings[-1], by_letters, n=_NEAREST, cutoff=0.6)
        for known in by_letters[letters]
    ]
    found = list(dict.fromkeys([*exact, *close]))
    prefix = written.replace("/", ":").partition(":")[0] + ":"
    return sorted(found, key=lambda known: (known not in exact, not known.startswith(prefix)))[:_NEAREST]


def resolve_args(name: str, args: Args, state: State | None = None) -> dict[str, Any]:
    """Complete arguments: given by the user, else inferred from the shapes in `state`, else the default."""
    return get_architecture(name).resolve(args, state)


def build(name: str, args: Args, state: State | None = None) -> nn.Module:
    """A freshly initialised module of a registered architecture; `state` only serves to infer arguments.

    Raises EngineError: unknown_architecture for the name, architecture_mismatch for arguments that cannot be.
    """
    architecture = get_architecture(name)
    return architecture.build(architecture.resolve(args, state))


def fitting_architectures(state: State) -> list[str]:
    """Names whose keys and shapes are exactly those of `state`, in every family; nothing large is built for it."""
    return [name for family in _families() for name in family.fitting(state)]


def mismatch(name: str, args: Args, state: State) -> Mismatch:
    """How `state` differs from the architecture, whose arguments are inferred from it as far as they can be."""
    architecture = get_architecture(name)
    return compare(architecture.build_empty(architecture.resolve(args, state)).state_dict(), state)


def _letters(name: str) -> str:
    return "".join(character for character in name if character.isalnum())


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest
