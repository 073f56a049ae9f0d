"""Tensors as a checkpoint describes them: a storage, an offset, a shape and strides; checked before memory is taken.

A description may lie. `as_strided((200000, 200000), (0, 0))` fits a file of one kilobyte and asks for 149 GiB, so a
tensor may neither reach outside its storage nor have more bytes than its storage has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from core.intake.refusals import invalid, unsafe

MAX_DIMENSIONS = 16
MAX_SIZE = 2**40
# Copies of overlapping tensors together may be this many times the bytes that are stored.
MAX_EXPANSION = 4

_RAW_DTYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


@dataclass(frozen=True)
class StorageRef:
    """A storage by its key in the container."""

    key: str
    dtype: torch.dtype
    size_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A view on a storage; `offset` and `strides` in elements of `dtype`."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensor(storage: object, dtype: object, offset: object, shape: object, strides: object) -> StoredTensor:
    """Checked description. Raises ValueError where the types are wrong, EngineError where the view is out of bounds."""
    if not isinstance(storage, StorageRef):
        raise ValueError("a tensor needs a storage")
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor needs an element type")
    shape, strides = _whole_numbers(shape), _whole_numbers(strides)
    (offset,) = _whole_numbers((offset,))
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape)} sizes and {len(strides)} strides")
    tensor = StoredTensor(storage, dtype, offset, shape, strides)
    what = f"A tensor of shape {list(shape)[:8]} with strides {list(strides)[:8]} at offset {offset}"
    if any(number < 0 for number in (offset, *shape, *strides)):
        raise unsafe(f"{what} has a negative number.")
    if any(size > MAX_SIZE for size in shape):
        raise unsafe(f"{what} is larger than any storage.")
    if 0 in shape:
        return tensor
    if tensor.size_bytes > storage.size_bytes:
        raise unsafe(f"{what} claims {tensor.size_bytes} bytes of a storage of {storage.size_bytes} bytes.")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > storage.size_bytes:
        raise unsafe(f"{what} reaches outside its storage of {storage.size_bytes} bytes.")
    return tensor


def read_tensors(stored: Mapping[str, StoredTensor], storages: Mapping[str, memoryview]) -> dict[str, torch.Tensor]:
    """Contiguous copies by name, independent of the file. Equal descriptions share one tensor (tied weights)."""
    distinct = dict.fromkeys(stored.values())
    wanted = sum(tensor.size_bytes for tensor in distinct)
    present = sum(len(storages[key]) for key in {tensor.storage.key for tensor in distinct})
    if wanted > MAX_EXPANSION * present:
        raise unsafe(f"The tensors overlap: together they claim {wanted} bytes, and {present} bytes are stored.")
    copies = {tensor: _copy(name, tensor, storages[tensor.storage.key]) for tensor, name in _names(stored).items()}
    return {name: copies[tensor] for name, tensor in stored.items()}


def _names(stored: Mapping[str, StoredTensor]) -> dict[StoredTensor, str]:
    return {tensor: name for name, tensor in reversed(stored.items())}


def _copy(name: str, tensor: StoredTensor, data: memoryview) -> torch.Tensor:
    if 0 in tensor.shape:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    itemsize = tensor.dtype.itemsize
    try:
        # Raw integers, because numpy has no bfloat16; numpy checks the bounds once more and takes unaligned data.
        view = np.ndarray(
            tensor.shape,
            dtype=_RAW_DTYPES[itemsize],
            buffer=data,
            offset=tensor.offset * itemsize,
            strides=tuple(stride * itemsize for stride in tensor.strides),
        )
    except (ValueError, TypeError) as error:
        raise invalid(f"Tensor {name!r} does not fit its storage of {len(data)} bytes: {error}.") from error
    flat = np.array(view, order="C", copy=True).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat).view(tensor.dtype).reshape(tensor.shape)


def _whole_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise ValueError("sizes and strides must be sequences")
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise ValueError("sizes, strides and offsets must be integers")
    return tuple(values)
