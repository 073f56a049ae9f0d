"""The inputs and outputs of an ONNX file, read from its bytes: names, element types, shapes.

An ONNX file is one protobuf message. What is wanted lies behind the weights, so those are skipped, in the object store
too: a gigabyte of weights costs a few requests. The file was made in a sandbox, so nothing in it is believed: every
length must fit into the message around it, and sizes and numbers are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_FIELDS = 1 << 18
"""In all messages together; a large network has some ten thousand."""

MAX_VALUE_BYTES = 1 << 16
MAX_NAMED = 1024
BLOCK_BYTES = 1 << 18

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of onnx.proto, which are never changed.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2
_SHAPE_DIMENSION = 1
_DIMENSION_VALUE = 1

ReadRange = Callable[[int, int], bytes]
"""Bytes start (inclusive) to end (exclusive) of the file."""


@dataclass(frozen=True)
class TensorSignature:
    """`element_type` is a number of onnx.TensorProto.DataType; a dimension that is not fixed is None."""

    name: str
    element_type: int
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]


def read_signature(read: ReadRange, size: int) -> Signature:
    """Raises ValueError for what is no ONNX file with tensors for inputs and outputs."""
    file = _Blocks(read, size)
    graph = next((span for number, span in _fields(file, 0, size) if number == _MODEL_GRAPH), None)
    if not isinstance(graph, tuple):
        raise ValueError("it has no graph")
    weights: set[str] = set()
    inputs: list[TensorSignature] = []
    outputs: list[TensorSignature] = []
    for number, value in _fields(file, *graph):
        if number == _GRAPH_INITIALIZER:
            # Older files list their weights among the inputs.
            weights.update(_text(file, span) for field, span in _fields(file, *_span(value)) if field == _TENSOR_NAME)
        elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            (inputs if number == _GRAPH_INPUT else outputs).append(_tensor(file, _span(value)))
        if max(len(inputs), len(outputs)) > MAX_NAMED + len(weights):
            raise ValueError("it has too many inputs or outputs")
    inputs = [tensor for tensor in inputs if tensor.name not in weights]
    if not inputs or not outputs:
        raise ValueError("it has no inputs or no outputs")
    return Signature(tuple(inputs), tuple(outputs))


def _tensor(file: _Blocks, span: tuple[int, int]) -> TensorSignature:
    if span[1] - span[0] > MAX_VALUE_BYTES:
        raise ValueError("the description of an input or output is too long")
    value = dict(_fields(file, *span))
    name = _text(file, _span(value.get(_VALUE_NAME)))
    tensor = dict(_fields(file, *_span(value.get(_VALUE_TYPE)))).get(_TYPE_TENSOR)
    if tensor is None:
        raise ValueError(f"{name!r} is no tensor")
    element, shape = 0, None
    for number, found in _fields(file, *_span(tensor)):
        if number == _TENSOR_ELEMENT and isinstance(found, int):
            element = found
        elif number == _TENSOR_SHAPE:
            shape = _span(found)
    if shape is None:
        raise ValueError(f"{name!r} has no shape")
    dimensions = [
        dict(_fields(file, *_span(found))).get(_DIMENSION_VALUE)
        for number, found in _fields(file, *shape)
        if number == _SHAPE_DIMENSION
    ]
    return TensorSignature(name, element, tuple(d if isinstance(d, int) and d > 0 else None for d in dimensions))


def _span(value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple):
        raise ValueError("a field that must be a message is something else")
    return value


def _text(file: _Blocks, span: Any) -> str:
    start, end = _span(span)
    if end - start > MAX_VALUE_BYTES:
        raise ValueError("a name is too long")
    return bytes(file.byte(at) for at in range(start, end)).decode(errors="replace")


def _fields(file: _Blocks, start: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """The fields of the message in this range: a number, or the range of what is in it."""
    at = start
    while at != end:
        file.count_field()
        key, at = _varint(file, at, end)
        kind, value = key & 7, None
        if kind == _VARINT:
            value, at = _varint(file, at, end)
        elif kind == _BYTES:
            length, at = _varint(file, at, end)
            value, at = (at, at + length), at + length
        elif kind in (_FIXED32, _FIXED64):
            value, at = 0, at + (4 if kind == _FIXED32 else 8)
        if value is None or at > end:
            raise ValueError(f"byte {at} is no protobuf field")
        yield key >> 3, value


def _varint(file: _Blocks, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = file.byte(at)
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError(f"byte {at} is no protobuf number")


class _Blocks:
    """Single bytes of a file that is read a block at a time."""

    def __init__(self, read: ReadRange, size: int) -> None:
        self._read = read
        self._size = size
        self._start = 0
        self._block = b""
        self._fields = 0

    def count_field(self) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise ValueError("it has too many fields")

    def byte(self, at: int) -> int:
        if not self._start <= at < self._start + len(self._block):
            self._start, self._block = at, self._read(at, min(at + BLOCK_BYTES, self._size))
            if not self._block:
                raise ValueError("it ends too early")
        return self._block[at - self._start]
