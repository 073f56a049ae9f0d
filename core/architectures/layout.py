"""Layouts: the names and shapes of a state_dict, compared by hash.

A library has a thousand networks, and building one costs up to a second, so which of them a state_dict fits is told
from an index: per network one hash of its names, and one of its names with their shapes, in which the sizes that follow
from an argument (classes, input channels) are left open. Equal hashes and open sizes that agree are a fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]

_OPEN = "*"
_DIGITS = 16


@dataclass(frozen=True)
class OpenSize:
    """One axis of one tensor, whose size is `factor` times an argument."""

    key: str
    axis: int
    factor: int


@dataclass(frozen=True)
class Layout:
    """names, shapes: hashes. tensors: how many there are. open: per argument, the sizes that follow from it."""

    names: str
    shapes: str
    tensors: int
    open: Mapping[str, tuple[OpenSize, ...]] = field(default_factory=dict)

    @staticmethod
    def of(state: State, open: Mapping[str, tuple[OpenSize, ...]]) -> Layout:
        return Layout(names_hash(state), shapes_hash(state, open), len(_counted(state)), dict(open))

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Layout:
        open = {name: tuple(OpenSize(*size) for size in sizes) for name, sizes in value["open"].items()}
        return Layout(value["names"], value["shapes"], value["tensors"], open)

    def as_json(self) -> dict[str, Any]:
        open = {name: [[size.key, size.axis, size.factor] for size in sizes] for name, sizes in self.open.items()}
        return {"names": self.names, "shapes": self.shapes, "tensors": self.tensors, "open": open}

    def arguments(self, state: State) -> dict[str, int]:
        """What the open sizes that `state` has say; an argument over which they disagree is left out."""
        found = {}
        for name, sizes in self.open.items():
            values = {self._value(state, size) for size in sizes if size.key in state}
            if len(values) == 1 and None not in values:
                found[name] = values.pop()
        return found

    def lacks(self, state: State, argument: str) -> bool:
        """Whether everything is there, in number, but the tensors that follow from `argument`."""
        keys = {size.key for size in self.open.get(argument, ())}
        return bool(keys) and keys.isdisjoint(state) and len(_counted(state)) == self.tensors - len(keys)

    def matches(self, state: State, names: str) -> bool:
        """Whether `state`, whose names have the hash `names`, has this layout."""
        return (
            names == self.names
            and self.arguments(state).keys() == self.open.keys()
            and shapes_hash(state, self.open) == self.shapes
        )

    @staticmethod
    def _value(state: State, size: OpenSize) -> int | None:
        shape = state[size.key].shape
        if size.axis >= len(shape):
            return None
        value, remainder = divmod(shape[size.axis], size.factor)
        return None if remainder else value


def names_hash(state: State) -> str:
    return _hash(_counted(state))


def shapes_hash(state: State, open: Mapping[str, tuple[OpenSize, ...]]) -> str:
    axes = {(size.key, size.axis) for sizes in open.values() for size in sizes}
    return _hash(_line(name, state[name], axes) for name in _counted(state))


def _line(name: str, tensor: Tensor, open: set[tuple[str, int]]) -> str:
    kind = "f" if tensor.is_floating_point() else "i"
    return f"{name} {kind} {[_OPEN if (name, axis) in open else size for axis, size in enumerate(tensor.shape)]}"


def _counted(state: State) -> list[str]:
    """Without batch-norm's counters, which PyTorch before 0.4.1 did not have."""
    return sorted(name for name in state if not name.endswith(".num_batches_tracked"))


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGITS]
