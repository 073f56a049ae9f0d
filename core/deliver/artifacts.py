"""Files of a delivery: weights, report, manifest, and what each file is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.intake import save_safetensors
from core.intake.safetensors_file import PRUNED_MARK
from core.network import Network

_MEDIA_TYPES = {
    ".onnx": "application/onnx",
    ".safetensors": "application/vnd.safetensors",
    ".py": "text/x-python",
    ".json": "application/json",
    ".html": "text/html",
}


@dataclass(frozen=True)
class Artifact:
    """One delivered file; `size` in bytes."""

    name: str
    media_type: str
    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> Artifact:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Artifact(
            path.name, _MEDIA_TYPES.get(path.suffix, "application/octet-stream"), path.stat().st_size, digest
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_safetensors(network: Network, path: Path, *, pruned: bool) -> None:
    """Every tensor of the network under its original name; a pruned network's file says so, for intake to refuse it."""
    # One entry at most: the library writes several in an order that changes from run to run.
    save_safetensors(network.tensors, path, metadata=PRUNED_MARK if pruned else None)
    # The library makes files for their owner only; artifacts are to be copied and served like any other file.
    path.chmod(0o644)


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Readable JSON; a value that JSON has no word for (NaN, infinity) is an error."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """`manifest.json`: the sha256 of every other file in the folder."""
    entries = [Artifact.of(path).as_dict() for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    write_json({"artifacts": entries}, folder / "manifest.json")
