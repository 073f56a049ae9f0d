"""The older form of `torch.save` (PyTorch before 1.6, and `_use_new_zipfile_serialization=False` since).

Five pickles one after another, then raw storages:

    magic number · protocol version (1001) · system information · the object · list of storage keys
    for each key: number of elements (8 bytes, little-endian), elements
"""

from __future__ import annotations

from typing import Any

from core.intake.checkpoint import Checkpoint, StorageTable
from core.intake.machine import PersistentId, interpret
from core.intake.refusals import damaged, invalid, unsupported

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


def read_stream(data: memoryview) -> Checkpoint:
    """Raises EngineError: unsafe_model, invalid_model, unsupported_format (a pickle that torch.save did not write)."""
    reader = _Reader(data)
    if reader.pickle("the file's first pickle") != MAGIC_NUMBER:
        raise unsupported("The file is a plain pickle, not a checkpoint written by torch.save.")
    version = reader.pickle("the protocol version")
    if version != PROTOCOL_VERSION:
        raise unsupported(f"The checkpoint has stream protocol {str(version)[:20]}; only {PROTOCOL_VERSION} is known.")
    system = reader.pickle("the system information")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise unsupported("The checkpoint was not written on a little-endian machine.")
    table = StorageTable()
    root = reader.pickle("the checkpoint's pickle", table.persistent_id)
    keys = reader.pickle("the list of storages")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise invalid("The checkpoint's list of storages is not a list of names.")
    if len(set(keys)) != len(keys) or set(keys) != table.refs.keys():
        raise invalid(
            f"The checkpoint lists {len(keys)} storages, {len(set(keys))} of them distinct, "
            f"and its tensors refer to {len(table.refs)}; they must be the same."
        )
    storages: dict[str, memoryview] = {}
    for key in keys:
        ref = table.refs[key]
        count = int.from_bytes(reader.raw(8), "little", signed=True)
        if count * ref.dtype.itemsize != ref.size_bytes:
            raise invalid(f"Storage {key[:40]!r} has {count} elements, and its tensors expect {ref.size_bytes} bytes.")
        storages[key] = reader.raw(ref.size_bytes)
    if reader.remaining:
        raise invalid(f"The checkpoint has {reader.remaining} bytes after its last storage.")
    return Checkpoint("stream", root, storages)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self._position

    def pickle(self, what: str, persistent_id: PersistentId | None = None) -> Any:
        value, size = interpret(self._data[self._position :], what=what, persistent_id=persistent_id)
        self._position += size
        return value

    def raw(self, count: int) -> memoryview:
        if count > self.remaining:
            raise damaged(f"The checkpoint ends {count - self.remaining} bytes before its last storage does.")
        start = self._position
        self._position += count
        return self._data[start : self._position]
