"""The safetensors container: a JSON header with a shape, a type and a byte range per tensor, then the bytes.

    header size (8 bytes, little-endian) · header · data, which the ranges tile exactly

Read by our own parser, so that every limit is checked before memory is taken; written by the safetensors library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from core.intake.checkpoint import Checkpoint
from core.intake.refusals import damaged, invalid, too_large
from core.intake.stored import MAX_DIMENSIONS, MAX_SIZE, StorageRef, StoredTensor

MAX_HEADER_BYTES = 100_000_000
# Marks weights whose network is no longer the architecture that they came from, though names and shapes may fit it.
PRUNED_MARK = {"pennyweight": "pruned"}

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


def read_safetensors(data: memoryview) -> Checkpoint:
    """Raises EngineError: invalid_model naming the tensor and what is wrong with it, too_large for the header."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise too_large(f"The safetensors header claims {size} bytes; at most {MAX_HEADER_BYTES} are read.")
    if len(data) < 8 or size > len(data) - 8:
        raise damaged(f"The safetensors header claims {size} bytes and the file has {max(0, len(data) - 8)} after it.")
    header = _header(bytes(data[8 : 8 + size]))
    tensors = {name: _described(name, entry) for name, entry in header.items() if name != "__metadata__"}
    body = data[8 + size :]
    position = 0
    for name, (begin, end, _) in sorted(tensors.items(), key=lambda item: item[1][:2]):
        if begin != position:
            raise invalid(
                f"Tensor {name[:80]!r} begins at byte {begin} and the one before it ends at {position}: "
                f"the tensors of a safetensors file may neither overlap nor leave gaps."
            )
        position = end
    if position > len(body):
        raise damaged(f"The tensors need {position} bytes and the file has {len(body)}.")
    if position < len(body):
        raise invalid(f"The safetensors file has {len(body) - position} bytes that belong to no tensor.")
    root = {name: tensor for name, (_, _, tensor) in tensors.items()}
    storages = {name: body[begin:end] for name, (begin, end, _) in tensors.items()}
    return Checkpoint("safetensors", root, storages, header.get("__metadata__", {}))


def save_safetensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous CPU copies; tensors that share memory are written once per name."""
    seen: set[int] = set()
    owned: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    safetensors.torch.save_file(owned, str(path), metadata=dict(metadata) if metadata else None)


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"The safetensors header is not valid JSON: {str(error)[:200]}.") from error
    if not isinstance(header, dict):
        raise invalid("The safetensors header is not a JSON object.")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise invalid("The safetensors header's __metadata__ is not a mapping of strings to strings.")
    return header


def _described(name: str, entry: object) -> tuple[int, int, StoredTensor]:
    """(begin, end, tensor) of one header entry."""
    what = f"Tensor {name[:80]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise invalid(f"{what} of the safetensors header needs exactly dtype, shape and data_offsets.")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise invalid(f"{what} has element type {str(entry['dtype'])[:20]!r}; known: {', '.join(_DTYPES)}.")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or any(size > MAX_SIZE for size in shape):
        raise invalid(f"{what} has an impossible shape {str(shape)[:80]}.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise invalid(f"{what} has impossible data_offsets {str(offsets)[:80]}.")
    begin, end = offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise invalid(f"{what} of shape {shape} and type {entry['dtype']} needs {needed} bytes and has {end - begin}.")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return begin, end, StoredTensor(StorageRef(name, dtype, needed), dtype, 0, tuple(shape), strides)


def _sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
