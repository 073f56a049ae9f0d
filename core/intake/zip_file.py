"""The present form of `torch.save`: a zip of stored (never compressed) entries under one folder.

    archive/data.pkl   archive/byteorder   archive/data/0   archive/data/1 …   archive/version

The storages are read where they lie in the file. An entry must be what the directory says of it and may not share bytes
with another one, so that the sum of the parts never exceeds the file.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import EngineError
from core.intake.checkpoint import Checkpoint, StorageTable
from core.intake.machine import interpret
from core.intake.refusals import damaged, invalid, too_large, unsafe, unsupported
from core.intake.window import Window

MAX_ENTRIES = 4096
MAX_DIRECTORY_BYTES = 4 << 20
MAX_RATIO = 1.05

_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Archive:
    """root: the one folder that every entry lies in, "" without one. entries: their bytes, by name under the root."""

    root: str
    entries: Mapping[str, memoryview]

    def text(self, name: str) -> str | None:
        data = self.entries.get(name)
        return None if data is None else bytes(data[:64]).decode("ascii", "replace").strip()


def read_zip(data: memoryview) -> Checkpoint:
    """Raises EngineError: unsafe_model, invalid_model, unsupported_format, too_large."""
    return read_checkpoint_archive(open_archive(data))


def read_checkpoint_archive(archive: Archive) -> Checkpoint:
    """As `read_zip`, of an archive that is open already."""
    if "constants.pkl" in archive.entries or any(name.startswith("code/") for name in archive.entries):
        raise unsupported("The file is a TorchScript archive, which is a program and not weights alone.")
    pickle = archive.entries.get("data.pkl")
    if pickle is None:
        raise _other_zip(archive)
    if archive.text("byteorder") not in (None, "little"):
        raise unsupported(f"The checkpoint has byte order {archive.text('byteorder')!r}; only little is read.")
    table = StorageTable()
    what = f"{archive.root}/data.pkl"
    root, size = interpret(pickle, what=what, persistent_id=table.persistent_id)
    if size != len(pickle):
        raise invalid(f"{what} has {len(pickle) - size} bytes after its pickle.")
    storages: dict[str, memoryview] = {}
    for key, ref in table.refs.items():
        storage = archive.entries.get(f"data/{key}")
        if storage is None:
            raise invalid(f"The checkpoint has no entry data/{key[:40]} for a storage that its tensors refer to.")
        if len(storage) != ref.size_bytes:
            raise invalid(f"Entry data/{key[:40]} has {len(storage)} bytes; its tensors expect {ref.size_bytes}.")
        storages[key] = storage
    return Checkpoint("zip", root, storages)


def open_archive(data: memoryview) -> Archive:
    """The entries where they lie. Raises EngineError for compressed, encrypted, doubled, overlapping or lost ones."""
    window = Window(data, max_read_bytes=MAX_DIRECTORY_BYTES, what="The zip's directory")
    try:
        with zipfile.ZipFile(window) as archive:
            infos = archive.infolist()
    except EngineError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error, OverflowError) as error:
        raise damaged(f"The file begins like a zip and cannot be read as one: {str(error)[:200]}.") from error
    if len(infos) > MAX_ENTRIES:
        raise too_large(f"The zip has {len(infos)} entries; at most {MAX_ENTRIES} are read.")
    claimed = sum(info.file_size for info in infos)
    if claimed > MAX_RATIO * len(data):
        raise unsafe(f"The zip unpacks to {claimed} bytes from {len(data)}; a checkpoint is not compressed.")
    roots = {info.filename.partition("/")[0] for info in infos}
    root = roots.pop() if len(roots) == 1 else ""
    entries: dict[str, memoryview] = {}
    spans: list[tuple[int, int, str]] = []
    for info in infos:
        name = info.filename.removeprefix(f"{root}/") if root else info.filename
        if name in entries:
            raise unsafe(f"The zip has two entries named {name[:80]!r}.")
        start, end = _span(info, data)
        spans.append((info.header_offset, end, name))
        entries[name] = data[start:end]
    spans.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise unsafe(f"The zip's entries {first[:80]!r} and {second[:80]!r} overlap.")
    return Archive(root, entries)


def _span(info: zipfile.ZipInfo, data: memoryview) -> tuple[int, int]:
    """Where the bytes of a stored entry lie; the entry's own header must say what the directory says."""
    name = info.filename[:80]
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise unsafe(f"The zip's entry {name!r} is compressed; torch.save stores entries uncompressed.")
    if info.flag_bits & _ENCRYPTED:
        raise unsafe(f"The zip's entry {name!r} is encrypted.")
    header = info.header_offset
    if header < 0 or header + _LOCAL_HEADER.size > len(data):
        raise damaged(f"The zip's entry {name!r} lies outside the file.")
    signature, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL_HEADER.unpack_from(data, header)
    start = header + _LOCAL_HEADER.size + name_size + extra_size
    end = start + info.file_size
    if signature != b"PK\x03\x04" or end > len(data):
        raise damaged(f"The zip's entry {name!r} lies outside the file.")
    written = bytes(data[header + _LOCAL_HEADER.size :][:name_size])
    same_name = written == info.orig_filename.encode("utf-8" if flags & 0x800 else "cp437", "replace")
    if method != zipfile.ZIP_STORED or flags & _ENCRYPTED or not same_name:
        raise unsafe(f"The zip's entry {name!r} differs from the zip's directory.")
    return start, end


def _other_zip(archive: Archive) -> EngineError:
    names = archive.entries
    if any(name.endswith((".npy", ".npz")) for name in names):
        return unsupported("The file is a NumPy archive, not a checkpoint.")
    if "archive_format" in names or any("exported_program" in name or "models/" in name for name in names):
        return unsupported("The file is an exported program (.pt2), which is a whole network and not a state_dict.")
    if any(name.endswith(("config.json", "model.weights.h5")) for name in names):
        return unsupported("The file is a Keras archive, not a PyTorch checkpoint.")
    return unsupported("The file is a zip, but not one that torch.save wrote: it has no data.pkl.")
