"""What lies in a `.pt2` archive: one program as JSON, and tensors as raw bytes with a JSON that describes them.

    models/model.json                        the graph and its signature
    data/weights/model_weights_config.json   {"config": {"conv.weight": {"path_name": "weight_0", "tensor_meta": …}}}
    data/weights/weight_0                    the bytes of a storage
    data/constants/…                         the same for tensors that are no state
    data/sample_inputs/model.pt              a pickle, which is never read

PyTorch 2.6 to 2.8 wrote the tensors by `torch.save` (`serialized_state_dict.pt`, `data/weights/model.pt`); those are read
by the interpreter of pickles that has no way to run anything. Objects that only running code could restore are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.intake.pt2.fields import parse, take, union, whole
from core.intake.refusals import invalid, unsafe, unsupported
from core.intake.state_dict import as_float32
from core.intake.stored import StorageRef, StoredTensor, read_tensors, stored_tensor
from core.intake.zip_file import Archive, open_archive, read_checkpoint_archive

# The numbers of torch._export.serde.schema.ScalarType.
SCALAR_TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
SCHEMA_MAJOR = 8
_STRIDED = 7
_OLD_PROGRAM = "serialized_exported_program.json"


@dataclass(frozen=True)
class Program:
    """document: the program's JSON. weights: its state, floats as float32. constants: tensors that are no state."""

    document: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    constants: Mapping[str, torch.Tensor]


def holds_program(archive: Archive) -> bool:
    """Whether a zip is an archive of torch.export or of AOTInductor, and no state_dict."""
    names = archive.entries
    return "data.pkl" not in names and (
        "archive_format" in names or _OLD_PROGRAM in names or any(name.startswith("models/") for name in names)
    )


def read_program(data: memoryview) -> Program:
    """Raises EngineError: unsafe_model, invalid_model, unsupported_format, too_large."""
    archive = open_archive(data)
    if archive.text("byteorder") not in (None, "little"):
        raise unsupported(f"The .pt2 file has byte order {archive.text('byteorder')!r}; only little is read.")
    entry, weights, constants = _old_entries(archive) if _OLD_PROGRAM in archive.entries else _entries(archive)
    document = parse(archive.entries[entry], f"{entry} of the .pt2 file")
    _require_schema(document)
    return Program(document, as_float32(_tensors(archive, weights)), _tensors(archive, constants))


@dataclass(frozen=True)
class _Payload:
    """Where tensors lie: described by a JSON, or in one saved file; in neither where there are none."""

    config: str | None = None
    saved: str | None = None
    folder: str = ""


def _entries(archive: Archive) -> tuple[str, _Payload, _Payload]:
    names = archive.entries
    programs = [name for name in names if name.startswith("models/") and name.endswith(".json")]
    if any(name.startswith("data/aotinductor/") for name in names):
        raise unsupported(
            "The .pt2 file holds a network compiled by AOTInductor, which is machine code and no graph. Save the exported "
            "program itself: torch.export.save(torch.export.export(model, inputs), 'model.pt2')."
        )
    if len(programs) != 1:
        found = f"{len(programs)} programs ({', '.join(sorted(programs)[:5])})" if programs else "no program"
        raise unsupported(f"The .pt2 file holds {found}; one is read.")
    name = programs[0].removeprefix("models/").removesuffix(".json")
    payloads = []
    for folder, kind in (("data/weights/", "weights"), ("data/constants/", "constants")):
        saved, config = f"{folder}{name}.pt", f"{folder}{name}_{kind}_config.json"
        if saved in names:
            payloads.append(_Payload(saved=saved))
        elif config in names:
            payloads.append(_Payload(config=config, folder=folder))
        else:
            raise invalid(f"The .pt2 file has neither {config[:120]} nor {saved[:120]}; the file is damaged.")
    return programs[0], payloads[0], payloads[1]


def _old_entries(archive: Archive) -> tuple[str, _Payload, _Payload]:
    saved = ["serialized_state_dict.pt", "serialized_constants.pt"]
    payloads = [_Payload(saved=name if name in archive.entries else None) for name in saved]
    return _OLD_PROGRAM, payloads[0], payloads[1]


def _require_schema(document: Mapping[str, Any]) -> None:
    what = "The program"
    version = take(document, "schema_version", dict, what)
    major, minor = take(version, "major", int, what), take(version, "minor", int, what)
    if major != SCHEMA_MAJOR:
        raise unsupported(
            f"The .pt2 file is of schema {major}.{minor} (PyTorch {str(document.get('torch_version', 'unknown'))[:20]}), and "
            f"schema {SCHEMA_MAJOR} is read, which PyTorch 2.6 and later write. Export the network again."
        )


def _tensors(archive: Archive, payload: _Payload) -> dict[str, torch.Tensor]:
    if payload.config is not None:
        return _raw_tensors(archive, payload.config, payload.folder)
    if payload.saved is None or not len(archive.entries[payload.saved]):
        return {}
    checkpoint = read_checkpoint_archive(open_archive(archive.entries[payload.saved]))
    root = checkpoint.root
    if not isinstance(root, dict) or not all(isinstance(name, str) for name in root):
        raise invalid(f"{payload.saved} of the .pt2 file holds no tensors by name.")
    others = [name[:80] for name, value in root.items() if not isinstance(value, StoredTensor)]
    if others:
        raise _objects(others)
    return read_tensors(root, checkpoint.storages)


def _raw_tensors(archive: Archive, config: str, folder: str) -> dict[str, torch.Tensor]:
    what = f"{config} of the .pt2 file"
    entries = take(parse(archive.entries[config], what), "config", dict, config)
    pickled = [name[:80] for name, entry in entries.items() if isinstance(entry, dict) and entry.get("use_pickle")]
    if pickled:
        raise _objects(pickled)
    stored: dict[str, StoredTensor] = {}
    storages: dict[str, memoryview] = {}
    for name, entry in entries.items():
        where = f"Tensor {name[:80]!r}"
        if not isinstance(entry, dict):
            raise invalid(f"{where} of the .pt2 file is not described.")
        key = take(entry, "path_name", str, where)
        storage = archive.entries.get(folder + key)
        if storage is None:
            raise invalid(f"{where} of the .pt2 file lies in {folder}{key[:80]}, which the archive does not have.")
        storages[key] = storage
        stored[name] = _described(take(entry, "tensor_meta", dict, where), key, storage, where)
    return read_tensors(stored, storages)


def _described(meta: Mapping[str, Any], key: str, storage: memoryview, where: str) -> StoredTensor:
    code = take(meta, "dtype", int, where)
    if code not in SCALAR_TYPES:
        raise unsupported(f"{where} of the .pt2 file has element type number {code}, which is not read.")
    if meta.get("layout", _STRIDED) != _STRIDED:
        raise unsupported(f"{where} of the .pt2 file is sparse.")
    shape = tuple(_size(size, where) for size in take(meta, "sizes", list, where))
    strides = tuple(_size(size, where) for size in take(meta, "strides", list, where))
    offset = _size(meta.get("storage_offset"), where)
    dtype = SCALAR_TYPES[code]
    try:
        return stored_tensor(StorageRef(key, dtype, len(storage)), dtype, offset, shape, strides)
    except ValueError as error:
        raise invalid(f"{where} of the .pt2 file is described wrongly: {error}.") from error


def _size(value: object, where: str) -> int:
    kind, size = union(value, where)
    if kind != "as_int":
        raise invalid(f"{where} of the .pt2 file has a size that is no number.")
    return whole(size, where)


def _objects(names: list[str]) -> Exception:
    listed = ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return unsafe(
        f"The .pt2 file holds {len(names)} pickled object(s) that only running code could restore: {listed}. Custom objects "
        "and tensor subclasses are not read.",
        {"objects": {"count": len(names), "first": names[:10]}},
    )
