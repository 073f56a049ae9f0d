"""What every torch container gives: one interpreted object, and the bytes of the storages that its tensors refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.intake.stored import StorageRef
from core.intake.symbols import StorageType

Container = Literal["safetensors", "zip", "stream", "onnx"]


@dataclass(frozen=True)
class Checkpoint:
    """root: the saved object, with a `StoredTensor` for each tensor. storages: bytes by storage key.

    metadata: what a safetensors header says beside its tensors; empty for the torch containers.
    """

    container: Container
    root: Any
    storages: Mapping[str, memoryview]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass
class StorageTable:
    """The storages that a pickle mentions, collected while it is interpreted."""

    refs: dict[str, StorageRef] = field(default_factory=dict)

    def persistent_id(self, value: object) -> StorageRef:
        """Value of `("storage", type, key, location, number of elements[, view])`. Raises ValueError."""
        if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
            kind = value[0] if isinstance(value, tuple) and value and isinstance(value[0], str) else "another object"
            raise ValueError(f"it refers to {kind[:40]!r}, not to a storage")
        _, kind, key, location, count = value[:5]
        if len(value) == 6 and value[5] is not None:
            raise ValueError("it holds views of storages as PyTorch before 0.4 wrote them; save it again")
        if not isinstance(kind, StorageType) or not isinstance(key, str) or not isinstance(location, str):
            raise ValueError("a storage needs a type, a key and a location")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage needs a number of elements")
        ref = StorageRef(key, kind.dtype, count * kind.dtype.itemsize)
        known = self.refs.setdefault(key, ref)
        if known != ref:
            raise ValueError(f"storage {key[:40]!r} is described in two ways")
        return known
