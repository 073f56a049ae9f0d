"""The only names that a checkpoint's pickle may mention, and what each of them becomes here.

Nothing of Python or PyTorch is looked up by name and nothing is called: a symbol is a value of ours, and "calling" it
runs our constructor for it. What is not in this table is refused.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from core.intake.stored import StoredTensor, stored_tensor


@dataclass(frozen=True)
class Constructor:
    """`construct(*args)` gives a plain value or raises ValueError."""

    name: str
    construct: Callable[..., Any]


@dataclass(frozen=True)
class StorageType:
    """Element type of a storage; bytes for untyped ones."""

    name: str
    dtype: torch.dtype


@dataclass
class NumpyDtype:
    """Element type of a NumPy scalar; its byte order arrives in a second step (BUILD)."""

    code: str
    byte_order: str = "<"

    def set_state(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a NumPy element type needs a byte order")
        self.byte_order = ">" if state[1] == ">" else "<"


_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_DTYPE_NAMES = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
]
_NUMPY_FORMATS = {
    **{"f8": "d", "f4": "f", "f2": "e", "b1": "?"},
    **{"i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B"},
}


def hashable(value: object) -> bool:
    """Keys are scalars: tuples can be built so that they all collide."""
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, (str, bytes, float))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _ordered_dict(items: object = ()) -> OrderedDict:
    _require(isinstance(items, (list, tuple)), "an ordered dictionary is built from a list")
    _require(all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items), "its items must be pairs")
    _require(all(hashable(key) for key, _ in items), "its keys must be scalars")
    return OrderedDict(items)


def _set(items: object = ()) -> set:
    _require(isinstance(items, (list, tuple)), "a set is built from a list")
    _require(all(hashable(item) for item in items), "its members must be scalars")
    return set(items)


def _frozenset(items: object = ()) -> frozenset:
    return frozenset(_set(items))


def _size(sizes: object) -> tuple:
    _require(isinstance(sizes, (list, tuple)), "a size is built from a list")
    return tuple(sizes)


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    _require(isinstance(text, str) and encoding in ("latin1", "latin-1"), "bytes are written as latin-1 text")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _device(kind: object, index: object = None) -> str:
    _require(isinstance(kind, str) and (index is None or isinstance(index, int)), "a device is a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _tensor(storage: object, offset: object, shape: object, strides: object) -> StoredTensor:
    return stored_tensor(storage, getattr(storage, "dtype", None), offset, shape, strides)


def _tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> StoredTensor:
    _require_plain(metadata)
    return _tensor(storage, offset, shape, strides)


def _tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> StoredTensor:
    _require_plain(metadata)
    return stored_tensor(storage, dtype, offset, shape, strides)


def _require_plain(metadata: object) -> None:
    plain = not metadata or (isinstance(metadata, dict) and not any(metadata.values()))
    _require(plain, "a conjugated or negated view is no plain tensor")


def _parameter(data: object, requires_grad: object, hooks: object, state: object = None) -> StoredTensor:
    _require(isinstance(data, StoredTensor), "a parameter is built from a tensor")
    return data


def _numpy_dtype(code: object, align: object = False, copy: object = True) -> NumpyDtype:
    _require(isinstance(code, str) and code in _NUMPY_FORMATS, "only numbers are read from NumPy")
    return NumpyDtype(code)


def _numpy_scalar(dtype: object, data: object) -> float | int | bool:
    _require(isinstance(dtype, NumpyDtype) and isinstance(data, bytes), "a NumPy number needs a type and bytes")
    layout = dtype.byte_order + _NUMPY_FORMATS[dtype.code]
    _require(struct.calcsize(layout) == len(data), "a NumPy number has the wrong length")
    return struct.unpack(layout, data)[0]


_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "__builtin__ set": _set,
    "builtins set": _set,
    "__builtin__ frozenset": _frozenset,
    "builtins frozenset": _frozenset,
    "__builtin__ bytes": _no_bytes,
    "_codecs encode": _encoded,
    "torch Size": _size,
    "torch device": _device,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor_v2,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
}

SYMBOLS: Mapping[str, Constructor | StorageType | torch.dtype] = MappingProxyType(
    {
        **{name: Constructor(name, construct) for name, construct in _CONSTRUCTORS.items()},
        **{
            f"{module} {name}": StorageType(name, dtype)
            for module in ("torch", "torch.cuda")
            for name, dtype in _STORAGE_DTYPES.items()
        },
        "torch.storage UntypedStorage": StorageType("UntypedStorage", torch.uint8),
        **{f"torch {name}": getattr(torch, name) for name in _DTYPE_NAMES},
    }
)
