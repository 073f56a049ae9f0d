"""A `.pwt` file: its header, checked before anything of the sizes that it declares is allocated, and its tensors."""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .ans import AnsColumns
from .faults import PwtError, PwtFault, require
from .huffman import HuffmanColumns
from .matrix import Body, Matrix
from .plain import IndexMap, SparseColumns

MAX_DECODED_BYTES = 1 << 32

_MAGIC = b"\x93PWT\r\n\x1a\n"
_VERSIONS = (1, 2)
_PRELUDE = struct.Struct("<8sIIII")
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 1 << 24
_MAX_ABOUT_BYTES = 1 << 20
_MAX_COMMAS, _MAX_BRACKETS = 1 << 20, 1 << 18  # what JSON is made of takes many times its text
_MAX_TENSORS = 1 << 16
_MAX_NAME_CHARACTERS = 1024
_MAX_AXES = 8
_MAX_ENTRIES = 1 << 32
_MAX_LEVELS = 1 << 16
_MAX_PAYLOAD_BYTES = 1 << 48
_TYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_FORMATS = ("raw", "im", "csc", "hac", "shac", "ans")
_FIELDS = {"name", "shape", "type", "format", "bytes", "crc32"}
_CODED_FIELDS = {"levels", "zero"}


@dataclass(frozen=True)
class _Entry:
    name: str
    matrix: Matrix
    type: str
    format: str
    bytes: int
    crc32: int
    offset: int = 0


class PwtFile:
    """Random access to the tensors of one file. Use it in a `with`, or close it."""

    def __init__(self, path: str | Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115 — close() is the caller's, by `with`
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            document, end = self._header()
            self.about: dict[str, Any] = document["about"]
            entries = [_entry(value, f"tensor {number}") for number, value in enumerate(document["tensors"])]
            require(len({entry.name for entry in entries}) == len(entries), PwtFault.bad_name, "header", "a name twice")
            if "onnx_skeleton" in document:
                _check_skeleton(document["onnx_skeleton"])
            self._skeleton: dict[str, int] | None = document.get("onnx_skeleton")
            decoded = sum(entry.matrix.entries * np.dtype(entry.type).itemsize for entry in entries)
            decoded += self._skeleton["unpacked_bytes"] if self._skeleton else 0
            fits = decoded <= max_decoded_bytes
            require(fits, PwtFault.too_large, "file", f"unpacks to {decoded} bytes; {max_decoded_bytes} are allowed")
            self._entries: dict[str, _Entry] = {}
            for entry in entries:
                offset = self._padded(end, entry.bytes)
                end = offset + entry.bytes
                self._entries[entry.name] = _Entry(**{**vars(entry), "offset": offset})
            if self._skeleton:
                self._skeleton["offset"] = self._padded(end, self._skeleton["bytes"])
                end = self._skeleton["offset"] + self._skeleton["bytes"]
            extra = self._size - end
            require(not extra, PwtFault.trailing_bytes, "file", f"{extra} bytes after the last payload")
        except BaseException:
            self._file.close()
            raise

    @property
    def names(self) -> list[str]:
        """The tensors, in the file's order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].matrix.shape

    def format(self, name: str) -> str:
        """How a tensor is coded: raw, im, csc, hac, shac or ans."""
        return self._entries[name].format

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor. Raises KeyError for a name that there is not, and PwtError."""
        entry = self._entries[name]
        return self.columns(name, 0, entry.matrix.columns).reshape(entry.matrix.shape)

    def columns(self, name: str, start: int, stop: int) -> np.ndarray:
        """The slices [start, stop) of a tensor's first axis; a vector or a scalar is one column, 0 to 1."""
        entry = self._entries[name]
        if not 0 <= start <= stop <= entry.matrix.columns:
            raise IndexError(f"{name} has the columns 0 to {entry.matrix.columns}, not {start} to {stop}")
        payload = self._bytes(entry.offset, entry.bytes, entry.crc32, name)
        shape = (
            (stop - start, *entry.matrix.shape[1:])
            if len(entry.matrix.shape) > 1
            else (stop - start, entry.matrix.rows)
        )
        try:
            if entry.format == "raw":
                return _raw(payload, entry)[start:stop].reshape(shape)
            return _body(payload, entry).values(start, stop).reshape(shape)
        except PwtError as error:
            raise PwtError(error.code, name, error.detail) from error

    @property
    def onnx_skeleton(self) -> bytes | None:
        """The ONNX model without the weights that this file holds, if there is one."""
        if self._skeleton is None:
            return None
        where, skeleton = "onnx_skeleton", self._skeleton
        packed = self._bytes(skeleton["offset"], skeleton["bytes"], skeleton["crc32"], where)
        return _unpacked(packed, skeleton["unpacked_bytes"], PwtFault.bad_skeleton, where)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> PwtFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _header(self) -> tuple[dict[str, Any], int]:
        """The header's document, and where it ends."""
        prelude = self._file.read(_PRELUDE.size)
        require(prelude[: len(_MAGIC)] == _MAGIC, PwtFault.not_pwt, "file", "it does not begin as a .pwt file does")
        require(len(prelude) == _PRELUDE.size, PwtFault.truncated, "file", "no whole prelude")
        _, version, packed_size, size, checksum = _PRELUDE.unpack(prelude)
        require(version in _VERSIONS, PwtFault.unsupported_version, "file", f"version {version}, not {_VERSIONS}")
        fits = max(packed_size, size) <= _MAX_HEADER_BYTES
        require(fits, PwtFault.header_too_large, "header", f"more than {_MAX_HEADER_BYTES} bytes")
        end = _PRELUDE.size + packed_size
        require(end <= self._size, PwtFault.truncated, "header", "the file ends before it does")
        packed = self._file.read(packed_size)
        require(zlib.crc32(packed) == checksum, PwtFault.header_corrupt, "header", "it is not what was written")
        text = _unpacked(packed, size, PwtFault.header_corrupt, "header")
        return _document(text), end

    def _padded(self, end: int, size: int) -> int:
        """Where the payload after `end` begins; the bytes between must be zero, and the payload within the file."""
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        require(offset + size <= self._size, PwtFault.truncated, "file", f"it ends before a payload at {offset} does")
        self._file.seek(end)
        require(
            not any(self._file.read(offset - end)), PwtFault.bad_padding, "file", f"not zero from {end} to {offset}"
        )
        return offset

    def _bytes(self, offset: int, size: int, checksum: int, where: str) -> memoryview:
        self._file.seek(offset)
        content = self._file.read(size)
        require(len(content) == size, PwtFault.truncated, where, "the file has become shorter")
        require(zlib.crc32(content) == checksum, PwtFault.checksum_mismatch, where, "it is not what was written")
        return memoryview(content)


def _unpacked(packed: bytes | memoryview, size: int, code: PwtFault, where: str) -> bytes:
    """What zlib packed, never more than the `size` bytes that it was."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise PwtError(code, where, str(error)) from error
    whole = len(content) == size and unpacker.eof and not unpacker.unused_data
    require(whole, code, where, f"it does not unpack to {size} bytes")
    return content


def _document(text: bytes) -> dict[str, Any]:
    few = text.count(b",") <= _MAX_COMMAS and text.count(b"[") + text.count(b"{") <= _MAX_BRACKETS
    require(few, PwtFault.header_too_large, "header", f"more than {_MAX_COMMAS} commas or {_MAX_BRACKETS} brackets")
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PwtError(PwtFault.header_invalid, "header", f"not JSON: {error}") from error
    fields = {"about", "tensors"}
    whole = isinstance(document, dict) and fields <= set(document) <= fields | {"onnx_skeleton"}
    require(whole, PwtFault.header_invalid, "header", "an object of about and tensors belongs here")
    typed = isinstance(document["about"], dict) and isinstance(document["tensors"], list)
    require(typed, PwtFault.header_invalid, "header", "about must be an object, and tensors a list")
    small = len(json.dumps(document["about"])) <= _MAX_ABOUT_BYTES
    require(small, PwtFault.header_too_large, "header", f"about takes more than {_MAX_ABOUT_BYTES} bytes")
    few = len(document["tensors"]) <= _MAX_TENSORS
    require(few, PwtFault.too_many_tensors, "header", f"more than {_MAX_TENSORS}")
    return document


def _check_skeleton(value: Any) -> None:
    limits = {"bytes": _MAX_PAYLOAD_BYTES, "unpacked_bytes": _MAX_PAYLOAD_BYTES, "crc32": (1 << 32) - 1}
    whole = isinstance(value, dict) and set(value) == set(limits)
    require(whole, PwtFault.header_invalid, "onnx_skeleton", f"an object of {', '.join(limits)} belongs here")
    for key, limit in limits.items():
        _integer(value[key], limit, PwtFault.header_invalid, "onnx_skeleton")


def _entry(value: Any, where: str) -> _Entry:
    whole = isinstance(value, dict) and _FIELDS <= set(value) <= _FIELDS | _CODED_FIELDS
    require(whole, PwtFault.header_invalid, where, f"an object of {', '.join(sorted(_FIELDS))} belongs here")
    name, shape, kind, format = value["name"], value["shape"], value["type"], value["format"]
    named = isinstance(name, str) and 0 < len(name) <= _MAX_NAME_CHARACTERS and name.isprintable()
    require(named, PwtFault.bad_name, where, f"a name has 1 to {_MAX_NAME_CHARACTERS} printable characters")
    shaped = isinstance(shape, list) and len(shape) <= _MAX_AXES
    require(shaped, PwtFault.bad_shape, name, f"a shape is a list of at most {_MAX_AXES} sizes")
    sizes = tuple(_integer(size, _MAX_ENTRIES, PwtFault.bad_shape, name) for size in shape)
    fits = math.prod(size or 1 for size in sizes) <= _MAX_ENTRIES
    require(fits, PwtFault.bad_shape, name, f"more than {_MAX_ENTRIES} entries")
    require(isinstance(kind, str) and kind in _TYPES, PwtFault.unknown_type, name, f"{kind!r}")
    levels = _integer(value.get("levels", 0), _MAX_LEVELS, PwtFault.header_invalid, name)
    require(isinstance(format, str) and format in _FORMATS, PwtFault.unknown_format, name, f"{format!r}")
    fits = format == "csc" or (levels > 0) == (format != "raw")
    require(fits, PwtFault.bad_codebook, name, f"{format} with {levels} levels")
    require(format == "raw" or kind == "float32", PwtFault.unknown_type, name, f"coded values are not {kind}")
    zero = value.get("zero")
    if zero is not None:
        _integer(zero, _MAX_LEVELS, PwtFault.header_invalid, name)
        require(zero < levels, PwtFault.bad_codebook, name, f"the reserved index {zero} is not below {levels} levels")
    size = _integer(value["bytes"], _MAX_PAYLOAD_BYTES, PwtFault.header_invalid, name)
    checksum = _integer(value["crc32"], (1 << 32) - 1, PwtFault.header_invalid, name)
    return _Entry(name, Matrix(sizes, levels, zero), kind, format, size, checksum)


def _raw(payload: memoryview, entry: _Entry) -> np.ndarray:
    """The array, one row per column."""
    kind, matrix = np.dtype(entry.type), entry.matrix
    whole = len(payload) == matrix.entries * kind.itemsize
    require(whole, PwtFault.bad_extent, entry.name, f"{len(payload)} bytes are not its shape's")
    if entry.type == "bool":
        truths = (np.frombuffer(payload, np.uint8) <= 1).all()
        require(truths, PwtFault.bad_index, entry.name, "a truth value is neither 0 nor 1")
    found = np.frombuffer(payload, kind.newbyteorder("<")).astype(kind)
    return found.reshape(matrix.columns, matrix.rows)


def _body(payload: memoryview, entry: _Entry) -> Body:
    matrix = entry.matrix
    head = 4 * matrix.levels
    require(len(payload) >= head, PwtFault.bad_extent, entry.name, f"no room for {matrix.levels} levels")
    codebook = np.frombuffer(payload[:head], "<f4").astype(np.float32)
    others = codebook if matrix.zero is None else np.delete(codebook, matrix.zero)
    ordered = np.isfinite(codebook).all() and (np.diff(others) > 0).all()
    require(ordered, PwtFault.bad_codebook, entry.name, "the levels are not finite and ascending")
    zeroed = matrix.zero is None or codebook[matrix.zero] == 0
    require(zeroed, PwtFault.bad_codebook, entry.name, "the reserved level is not 0")
    body = payload[head:]
    if entry.format == "ans":
        return AnsColumns(body, matrix, codebook)
    if entry.format == "im":
        return IndexMap(body, matrix, codebook)
    if entry.format == "csc":
        return SparseColumns(body, matrix, codebook)
    return HuffmanColumns(body, matrix, codebook, sparse=entry.format == "shac")


def _integer(value: Any, largest: int, code: PwtFault, where: str) -> int:
    require(type(value) is int and 0 <= value <= largest, code, where, f"{value!r} is no integer from 0 to {largest}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
