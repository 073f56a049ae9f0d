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
    """
    path = Path(path)
    file_bytes = path.stat().st_size
    tensors = {}
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        start = 8 + header_bytes
        if file_bytes < 8 or start > file_bytes:
            raise ValueError(f"{path} is cut short or is not a safetensors file")
        header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{path}: {name} has unknown type {entry['dtype']}")
            dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
            begin, end = entry["data_offsets"]
            count = math.prod(shape)
            if (
                any(size < 0 for size in shape)
                or not 0 <= begin <= end <= file_bytes - start
                or end - begin != count * dtype.itemsize
            ):
                raise ValueError(f"{path}: {name} does not fit into the file")
            file.seek(start + begin)
            values = torch.empty(0, dtype=dtype)
            if count:
                data = bytearray(file.read(end - begin))
                values = torch.frombuffer(data, dtype=dtype)
            tensors[name] = values.view(shape)
    return tensors
