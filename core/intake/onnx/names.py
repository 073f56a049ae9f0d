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

    def take(self, wanted: str) -> str:
        """A free path for a layer or for a tensor outside of layers; nothing else will lie under it."""
        path = safe_name(wanted)
        while path in self._taken or path in self._parents or not self._taken.isdisjoint(_ancestors(path)):
            path += "_"
        self._taken.add(path)
        self._parents.update(_ancestors(path))
        return path


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]
