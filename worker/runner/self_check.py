"""The command table of the start-up probe: a confined runner tries what it must and must not be able to do."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.protocol import OUTPUT_FOLDER, Task
from worker.runner.session import Command, Tell


def prepare() -> None:
    """Nothing: the probe imports no engine."""


def check(task: Task, folder: Path, tell: Tell) -> Mapping[str, Any]:
    port = int((folder / "input" / "port").read_text())
    canary = Path((folder / "input" / "canary").read_text())
    # Inside a view of its own the write may well succeed; whether it reached the host is for the supervisor to see.
    return {
        "uid": os.getuid(),
        "imports_engine": all(_readable(name) for name in ("torch", "core.engine")),
        "writes_own_folder": _writes(folder / OUTPUT_FOLDER / "probe") and _writes(Path.home() / "probe"),
        "reaches_network": _connects(port),
        "reads_canary": _reads(canary),
        "wrote_canary": _writes(canary),
    }


COMMANDS: Mapping[str, Command] = {"catalogue": check}


def _readable(module: str) -> bool:
    """Whether a module's file can be found and read; importing it would cost seconds."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None and _reads(Path(spec.origin))


def _connects(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def _reads(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def _writes(path: Path) -> bool:
    try:
        path.write_bytes(b"probe")
    except OSError:
        return False
    return True
