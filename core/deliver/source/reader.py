"""The weights reader that `model.py` carries: its source is copied, so it uses torch and the standard library only."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file: header size (8 bytes), JSON header, raw tensors.

    Nothing in the file is executed, and every size is checked against the file.
    Raises ValueError where the file is cut short or is not what it claims to be.
    """
    path = Path(path)
    with path.open("rb") as file:
        body_bytes = path.stat().st_size - 8
        header_bytes = int.from_bytes(file.read(8), "little")
        if body_bytes < 0 or header_bytes > body_bytes:
            raise ValueError(f"{path} is cut short or is not a safetensors file")
        try:
            header = dict(json.loads(file.read(header_bytes)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} has no readable safetensors header") from error
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            try:
                dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
                begin, end = entry["data_offsets"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: {name} is not described properly") from error
            sizes = (*shape, begin, end)
            if (
                not all(type(size) is int and 0 <= size < 2**63 for size in sizes)
                or not begin <= end <= body_bytes - header_bytes
                or end - begin != math.prod(shape) * dtype.itemsize
            ):
                raise ValueError(f"{path}: {name} does not fit into the file")
            file.seek(8 + header_bytes + begin)
            data = bytearray(file.read(end - begin))
            values = torch.empty(0, dtype=dtype)
            if data:
                values = torch.frombuffer(data, dtype=dtype)
            tensors[name] = values.view(shape)
    return tensors
