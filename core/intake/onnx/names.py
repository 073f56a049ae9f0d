"""Names of an upload, made safe: they become module paths, graph attributes and generated code.

    "/model/conv1/Conv" → "model.conv1.Conv"        "Parameter5" → "Parameter5"        "a\"; import os" → "a___import_os"

Parts hold ASCII letters, digits and underscores only, never an attribute that modules have themselves. No name is the
beginning of another one's path, so that every tensor and layer has a place of its own in a tree of modules.
"""

from __future__ import annotations

import re

from torch import nn
from torch.fx import GraphModule

_LONGEST = 160


def safe_name(name: str) -> str:
    """A dotted path of plain parts; "value" where nothing is left."""
    text = re.sub(r"[/:]+", ".", name)
    parts = [re.sub(r"[^0-9A-Za-z_]+", "_", part) for part in text[:_LONGEST].split(".")]
    return ".".join(_safe_part(part) for part in parts if part.strip("_")) or "value"


def safe_identifier(name: str) -> str:
    """One Python identifier."""
    plain = re.sub(r"[^0-9A-Za-z_]+", "_", name[:_LONGEST]).strip("_")
    return plain if plain and not plain[0].isdigit() else f"input_{plain}".rstrip("_")


def _safe_part(part: str) -> str:
    if part.startswith("__"):
        part = part.lstrip("_")
    return f"{part}_" if hasattr(nn.Module, part) or hasattr(GraphModule, part) or part in _INSTANCE else part


_INSTANCE = frozenset(vars(nn.Module())) | {"graph", "code", "self"}


class NameTree:
    """Paths already given away. Each new one differs from all of them, and from their beginnings."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._parents: set[str] = set()
        # Every search begins where the last one ended, or a file of many equal names would take forever.
        self._numbers: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        """A free path for a layer or for a tensor outside of layers; nothing else will lie under it."""
        parts = safe_name(wanted).split(".")
        for depth in range(1, len(parts)):
            # Beside what has that name already, in a module of a name like it.
            parts[depth - 1] = self._free(".".join(parts[:depth]), self._taken).rpartition(".")[2]
        path = self._free(".".join(parts), self._taken, self._parents)
        self._taken.add(path)
        self._parents.update(_ancestors(path))
        return path

    def _free(self, path: str, *taken: set[str]) -> str:
        """`path`, `path_`, `path_2`, …: the first of them from where the last search for it ended."""
        number = self._numbers.get(path, 0)
        while any(_numbered(path, number) in names for names in taken):
            number += 1
        self._numbers[path] = number
        return _numbered(path, number)


def _numbered(path: str, number: int) -> str:
    return path if number == 0 else f"{path}_" if number == 1 else f"{path}_{number}"


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]
