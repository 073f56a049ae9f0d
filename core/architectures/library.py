"""A family whose networks a library builds, and which is known from an index without importing that library.

The index, one JSON file per library beside this module, has for every network its title, input shape, arguments and
layouts (`core.architectures.layout`). `python -m core.architectures.indexing` writes it from the installed library.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from core.architectures.arguments import integer_in
from core.architectures.family import Architecture, Args, State
from core.architectures.layout import Layout, names_hash
from core.errors import first_line

_FOLDER = Path(__file__).parent
_ARGUMENT_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Entry:
    """What the index says of one network.

    arguments: those that are inferred from the weights, with their defaults. takes: further ones that it accepts.
    layouts: one per set of tensors that it may come with; the keys of `variants` are the arguments that select it.
    """

    title: str
    input_shape: tuple[int, ...]
    arguments: Mapping[str, Any]
    takes: tuple[str, ...]
    layouts: tuple[Layout, ...]

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Entry:
        return Entry(
            title=value["title"],
            input_shape=tuple(value["input"]),
            arguments=value["arguments"],
            takes=tuple(value["takes"]),
            layouts=tuple(Layout.from_json(layout) for layout in value["layouts"]),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "input": list(self.input_shape),
            "arguments": dict(self.arguments),
            "takes": list(self.takes),
            "layouts": [layout.as_json() for layout in self.layouts],
        }


@dataclass(frozen=True)
class LibraryFamily:
    """The networks of one library under `prefix:name`.

    properties: the JSON schema of every argument that any network may have. build: (name, arguments) → module with no
    weights fetched. infer: what the tensors' names tell beyond the open sizes. size_arguments: those that must agree
    with the height and width of the input.
    """

    prefix: str
    properties: Mapping[str, Mapping[str, Any]]
    size_arguments: tuple[str, ...]
    build: Callable[[str, Args], nn.Module]
    infer: Callable[[Entry, State], dict[str, Any]]
    renamed: Callable[[nn.Module, State], State]
    for_inference: Callable[[nn.Module], nn.Module]

    def names(self) -> list[str]:
        return [self._prefixed(name) for name in self.entries]

    def get(self, name: str) -> Architecture:
        bare = name.partition(":")[2]
        entry = self.entries[bare]
        wanted = (*entry.arguments, *entry.takes)
        properties = {argument: dict(self.properties[argument]) for argument in wanted}
        for argument, default in entry.arguments.items():
            properties[argument]["default"] = default
        return Architecture(
            name=name,
            title=entry.title,
            args_schema={"type": "object", "properties": properties, "additionalProperties": False},
            infer=functools.partial(self._inferred, entry),
            construct=functools.partial(self._constructed, bare),
            input_shape=functools.partial(self._input_shape, entry),
            renamed=self.renamed,
            for_inference=self.for_inference,
            size_argument=next((argument for argument in self.size_arguments if argument in entry.takes), None),
        )

    def fitting(self, state: State) -> list[str]:
        names = names_hash(state)
        found = [
            name
            for name, entry in self.entries.items()
            if any(layout.matches(state, names) for layout in entry.layouts)
        ]
        return [self._prefixed(name) for name in sorted(found, key=lambda name: (len(name), name))]

    @property
    def entries(self) -> Mapping[str, Entry]:
        return read_index(self.prefix)

    def _prefixed(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    def _inferred(self, entry: Entry, state: State, given: Args) -> dict[str, Any]:
        sizes = {**entry.layouts[0].arguments(state), **self.infer(entry, state)}
        return {
            name: value
            for name, value in sizes.items()
            if name in entry.arguments and (isinstance(value, bool) or integer_in(self.properties[name], value))
        }

    def _constructed(self, name: str, args: Args) -> nn.Module:
        try:
            return self.build(name, args)
        except _ARGUMENT_ERRORS as error:
            # The library's own checks of its arguments come in many kinds.
            raise ValueError(f"{self.prefix} cannot build it with {dict(args)}: {first_line(error, 300)}") from error

    def _input_shape(self, entry: Entry, args: Args) -> tuple[int, ...]:
        channels, *sizes = entry.input_shape
        for argument in self.size_arguments:
            if argument in args:
                size = args[argument]
                sizes = [*sizes[:-2], *(size if isinstance(size, (list, tuple)) else (size, size))]
        return (args.get("in_chans", channels), *sizes)


def index_path(prefix: str) -> Path:
    return _FOLDER / f"{prefix}.json"


@functools.cache
def read_index(prefix: str) -> Mapping[str, Entry]:
    models = json.loads(index_path(prefix).read_text(encoding="utf-8"))["models"]
    return {name: Entry.from_json(value) for name, value in models.items()}


def write_index(prefix: str, version: str, entries: Mapping[str, Entry]) -> None:
    """One line per network, so that a new version of the library shows as the lines that it changes."""
    names: Sequence[str] = sorted(entries)
    lines = [f"{json.dumps(name)}: {json.dumps(entries[name].as_json(), separators=(',', ':'))}" for name in names]
    head = f'{{\n"library": {json.dumps(prefix)},\n"version": {json.dumps(version)},\n"models": {{\n'
    index_path(prefix).write_text(head + ",\n".join(lines) + "\n}\n}\n", encoding="utf-8")
