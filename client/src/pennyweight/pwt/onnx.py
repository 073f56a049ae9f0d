"""Put weights back into an ONNX model that was stored without them, with nothing but the wire format of protocol buffers.

The skeleton is a whole ModelProto in whose graph (field 7) the initialisers (field 5 of the graph) that the file holds have
name, type and dimensions, and no data. They are given their data (raw_data); the rest stays byte for byte as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .faults import PwtError, PwtFault, require

_GRAPH, _INITIALIZER = 7, 5  # of a ModelProto, of a GraphProto
_DIMS, _TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # of a TensorProto
_DATA = {4, 5, 6, 7, _RAW_DATA, 10, 11, 13}  # the fields that hold a tensor's data, or say where it is
_VARINT, _BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}


def write(path: str | Path, skeleton: bytes, arrays: Mapping[str, np.ndarray]) -> None:
    """The model as one file. Raises PwtError where an initialiser without data has no array of its shape and type."""
    graphs = [content for number, content, _ in _fields(skeleton) if number == _GRAPH and isinstance(content, bytes)]
    require(len(graphs) == 1, PwtFault.bad_skeleton, "onnx_skeleton", "it is no ONNX model with one graph")
    graph = b"".join(
        _chunk(_INITIALIZER, content + _missing_data(content, arrays))
        if number == _INITIALIZER and isinstance(content, bytes)
        else whole
        for number, content, whole in _fields(graphs[0])
    )
    model = [_chunk(_GRAPH, graph) if number == _GRAPH else whole for number, _, whole in _fields(skeleton)]
    with Path(path).open("wb") as file:
        file.writelines(model)


def _missing_data(tensor: bytes, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The data of a TensorProto that has none, as a field."""
    name, kind, dims, has_data = "", 0, [], False
    for number, content, _ in _fields(tensor):
        if number == _NAME and isinstance(content, bytes):
            name = content.decode(errors="replace")
        elif number == _TYPE and isinstance(content, int):
            kind = content
        elif number == _DIMS:
            dims += [content] if isinstance(content, int) else _numbers(content)
        elif number in _DATA:
            has_data = True
    if has_data or 0 in dims:
        return b""
    require(name in arrays, PwtFault.bad_skeleton, "onnx_skeleton", f"there are no weights for {name}")
    value = arrays[name]
    fits = kind == _TYPES[value.dtype.name] and math.prod(dims) == value.size and dims == list(value.shape)
    require(
        fits, PwtFault.bad_skeleton, "onnx_skeleton", f"{name} is {value.dtype.name} {list(value.shape)}, not {dims}"
    )
    return _chunk(_RAW_DATA, value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int, bytes]]:
    """Number, value (bytes of strings and messages, an integer of varints) and whole bytes of each field."""
    at = 0
    while at < len(message):
        begin = at
        key, at = _read_varint(message, at)
        kind = key & 7
        value: bytes | int = b""
        if kind == _VARINT:
            value, at = _read_varint(message, at)
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            require(kind == _BYTES, PwtFault.bad_skeleton, "onnx_skeleton", f"a field of the unknown kind {kind}")
            size, at = _read_varint(message, at)
            value = message[at : at + size]
            at += size
        require(at <= len(message), PwtFault.bad_skeleton, "onnx_skeleton", "a field goes beyond its message")
        yield key >> 3, value, message[begin:at]


def _numbers(packed: bytes) -> list[int]:
    found, at = [], 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        found.append(value)
    return found


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        require(at < len(message), PwtFault.bad_skeleton, "onnx_skeleton", "a number goes beyond its message")
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise PwtError(PwtFault.bad_skeleton, "onnx_skeleton", "a number of more than ten bytes")


def _chunk(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
