"""The checkpoint of `pennyweightd compress`: one file beside the output folder, there until the command has succeeded.

The same command given again after an interruption goes on from it; any other begins anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.checkpoint import Checkpoint
    from core.engine import CompressionRequest

INTERVAL_S = 30.0


def place(output: Path) -> Path:
    return output.parent / f".{output.name}.checkpoint"


def checkpoint_for(request: CompressionRequest, output: Path, resumed: Callable[[], object]) -> Checkpoint:
    """resumed: told once something of the interrupted run has been put to use."""
    from core.checkpoint import Checkpoint, fingerprint
    from core.engine import resolve_device

    files = {name: _digest(getattr(request, name)) for name in ("model_path", "dataset_path")}
    asked = {**dataclasses.asdict(request), **files}
    mark = fingerprint(asked, resolve_device(request.device).type)
    return Checkpoint(place(output), mark, interval_s=INTERVAL_S, resumed=lambda step, number: resumed())


def forget(output: Path) -> None:
    for path in (place(output), place(output).with_name(place(output).name + ".new")):
        path.unlink(missing_ok=True)


def _digest(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
