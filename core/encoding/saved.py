"""A network with shared values as a checkpoint keeps it, and back: who shares indices or a codebook with whom included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.encoding.kernels import Shared
from core.encoding.quantized import QuantizedTensor
from core.network import Network

_OTHER = "other/"


def packed(start: Network, shared: Shared) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON: by name, the numbers of its indices and its codebook, its reserved index and the type of its indices. Then the
    numbered arrays, and what else differs from `start`."""
    values: dict[str, Any] = {}
    arrays: dict[str, Tensor] = {}
    numbers: dict[int, int] = {}
    for name, tensor in shared.tensors.items():
        own, codebook = (numbers.setdefault(id(part), len(numbers)) for part in (tensor, tensor.codebook))
        arrays[f"indices/{own}"] = torch.from_numpy(tensor.indices.astype(np.int32))
        arrays[f"codebook/{codebook}"] = torch.from_numpy(tensor.codebook)
        values[name] = [own, codebook, tensor.zero, tensor.indices.dtype.name]
    for name, tensor in shared.network.tensors.items():
        if name not in shared.tensors and not torch.equal(tensor, start.tensors[name]):
            arrays[_OTHER + name] = tensor
    return values, arrays


def unpacked(start: Network, values: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Shared:
    """What `packed` was given."""
    codebooks: dict[int, np.ndarray] = {}
    made: dict[int, QuantizedTensor] = {}
    for own, codebook, zero, kind in values.values():
        shared = codebooks.setdefault(codebook, arrays[f"codebook/{codebook}"].numpy())
        if own not in made:
            made[own] = QuantizedTensor(arrays[f"indices/{own}"].numpy().astype(kind), shared, zero)
    others = {name: arrays.get(_OTHER + name, tensor) for name, tensor in start.tensors.items()}
    return Shared.of(start.with_tensors(others), {name: made[own] for name, (own, *_) in values.items()})
