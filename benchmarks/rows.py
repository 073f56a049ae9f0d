"""Rows of a table that is made in pieces: a file keeps every row, and what it has is not measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Rows:
    """shared: the settings of all rows, which those in the file must have. Without a path nothing is kept."""

    def __init__(self, path: Path | None, shared: Mapping[str, Any]) -> None:
        self._path, self._shared = path, dict(shared)
        self.all: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.all = json.loads(path.read_text(encoding="utf-8"))
        if not all(row.items() >= self._shared.items() for row in self.all):
            raise SystemExit(f"{path} has rows of other settings than {self._shared}; name another file.")

    def has(self, key: Mapping[str, Any]) -> bool:
        return any(row.items() >= key.items() for row in self.all)

    def add(self, key: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        self.all.append({**key, **measured, **self._shared})
        if self._path is not None:
            self._path.write_text(json.dumps(self.all, indent=2) + "\n", encoding="utf-8")
