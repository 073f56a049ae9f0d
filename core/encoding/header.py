"""The header of a `.pwt` file: what it may say, as values, and the JSON that says it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from core.encoding.errors import PwtError, PwtFault

MAGIC = b"\x93PWT\r\n\x1a\n"
# Version 2 knows `ans` with contexts; a file without them is of version 1, which older readers take.
VERSIONS = (1, 2)
PRELUDE = struct.Struct("<8sIIII")  # magic, version, packed header bytes, header bytes, CRC-32 of the packed header

MAX_HEADER_BYTES = 1 << 24
MAX_ABOUT_BYTES = 1 << 20
# What JSON is made of costs many times its text; the largest lists of tensors have fewer.
MAX_COMMAS, MAX_BRACKETS = 1 << 20, 1 << 18
MAX_TENSORS = 1 << 16
MAX_NAME_CHARACTERS = 1024
MAX_AXES = 8
MAX_ENTRIES = 1 << 32
MAX_LEVELS = 1 << 16
MAX_PAYLOAD_BYTES = 1 << 48

TYPES: Mapping[str, int] = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
CODED = ("im", "csc", "hac", "shac", "ans")
_FIELDS = {"name", "shape", "type", "format", "levels", "zero", "bytes", "crc32"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: `levels` is the length of its codebook, 0 where it has none; `zero` the pruned index."""

    name: str
    shape: tuple[int, ...]
    type: str
    format: str
    levels: int
    zero: int | None
    bytes: int
    crc32: int

    @property
    def item_bytes(self) -> int:
        return TYPES[self.type]


@dataclass(frozen=True)
class SkeletonEntry:
    """The ONNX model without the weights that the file holds: `bytes` packed (zlib), `unpacked_bytes` in itself."""

    bytes: int
    unpacked_bytes: int
    crc32: int


@dataclass(frozen=True)
class PwtHeader:
    about: dict[str, Any]
    tensors: list[TensorEntry]
    skeleton: SkeletonEntry | None = None


def header_json(header: PwtHeader) -> bytes:
    document: dict[str, Any] = {"about": header.about, "tensors": [_entry_json(entry) for entry in header.tensors]}
    if header.skeleton:
        document["onnx_skeleton"] = asdict(header.skeleton)
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def parse_header(text: bytes) -> PwtHeader:
    """Raises PwtError for whatever is not as docs/pwt.md says."""
    if text.count(b",") > MAX_COMMAS or text.count(b"[") + text.count(b"{") > MAX_BRACKETS:
        raise PwtError(PwtFault.header_too_large, "header", f"more than {MAX_COMMAS} commas or {MAX_BRACKETS} brackets")
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PwtError(PwtFault.header_invalid, "header", f"not JSON: {error}") from error
    if not isinstance(document, dict) or not {"about", "tensors"} <= set(document) <= {
        "about",
        "tensors",
        "onnx_skeleton",
    }:
        raise _invalid("header", "an object of about, tensors and perhaps onnx_skeleton belongs here")
    if not isinstance(document["about"], dict) or not isinstance(document["tensors"], list):
        raise _invalid("header", "about must be an object, and tensors a list")
    if len(json.dumps(document["about"])) > MAX_ABOUT_BYTES:
        raise PwtError(PwtFault.header_too_large, "header", f"about takes more than {MAX_ABOUT_BYTES} bytes")
    if len(document["tensors"]) > MAX_TENSORS:
        raise PwtError(PwtFault.too_many_tensors, "header", f"{len(document['tensors'])}; at most {MAX_TENSORS}")
    tensors = [_entry(value, f"tensor {number}") for number, value in enumerate(document["tensors"])]
    if len({entry.name for entry in tensors}) != len(tensors):
        raise PwtError(PwtFault.bad_name, "header", "two tensors have the same name")
    skeleton = _skeleton(document["onnx_skeleton"]) if "onnx_skeleton" in document else None
    return PwtHeader(document["about"], tensors, skeleton)


def _skeleton(value: Any) -> SkeletonEntry:
    where = "onnx_skeleton"
    if not isinstance(value, dict) or set(value) != {"bytes", "unpacked_bytes", "crc32"}:
        raise _invalid(where, "an object of bytes, unpacked_bytes and crc32 belongs here")
    limits = {"bytes": MAX_PAYLOAD_BYTES, "unpacked_bytes": MAX_PAYLOAD_BYTES, "crc32": (1 << 32) - 1}
    return SkeletonEntry(**{key: _integer(value[key], f"{where}: {key}", limit) for key, limit in limits.items()})


def _entry_json(entry: TensorEntry) -> dict[str, Any]:
    found: dict[str, Any] = {"name": entry.name, "shape": list(entry.shape), "type": entry.type, "format": entry.format}
    if entry.levels:
        found |= {"levels": entry.levels, "zero": entry.zero}
    return found | {"bytes": entry.bytes, "crc32": entry.crc32}


def _entry(value: Any, where: str) -> TensorEntry:
    if not isinstance(value, dict) or not _FIELDS - {"levels", "zero"} <= set(value) <= _FIELDS:
        raise _invalid(where, f"an object of {', '.join(sorted(_FIELDS))} belongs here")
    name, shape, kind, format = value["name"], value["shape"], value["type"], value["format"]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise PwtError(PwtFault.bad_name, where, f"a name has 1 to {MAX_NAME_CHARACTERS} printable characters")
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise PwtError(PwtFault.bad_shape, name, f"a shape is a list of at most {MAX_AXES} sizes")
    sizes = tuple(_size(size, name) for size in shape)
    if math.prod(size or 1 for size in sizes) > MAX_ENTRIES:
        raise PwtError(PwtFault.bad_shape, name, f"more than {MAX_ENTRIES} entries")
    if not isinstance(kind, str) or kind not in TYPES:
        raise PwtError(PwtFault.unknown_type, name, f"{kind!r}; there are {', '.join(TYPES)}")
    levels = _integer(value.get("levels", 0), f"{name}: levels", MAX_LEVELS)
    if not isinstance(format, str) or format not in (*CODED, "raw"):
        raise PwtError(PwtFault.unknown_format, name, f"{format!r}; there are raw, {', '.join(CODED)}")
    if (levels == 0 and format not in ("raw", "csc")) or (levels > 0 and format == "raw"):
        raise PwtError(PwtFault.bad_codebook, name, f"{format} with {levels} levels")
    if format != "raw" and kind != "float32":
        raise PwtError(PwtFault.unknown_type, name, f"coded values are float32, not {kind}")
    zero = value.get("zero")
    if zero is not None:
        zero = _integer(zero, f"{name}: zero", MAX_LEVELS)
        if zero >= levels:
            raise PwtError(PwtFault.bad_codebook, name, f"the reserved index {zero} is not below {levels} levels")
    size, checksum = (
        _integer(value["bytes"], f"{name}: bytes", MAX_PAYLOAD_BYTES),
        _integer(value["crc32"], f"{name}: crc32", (1 << 32) - 1),
    )
    return TensorEntry(name, sizes, kind, format, levels, zero, size, checksum)


def _size(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ENTRIES:
        raise PwtError(PwtFault.bad_shape, name, f"{value!r} is no size of an axis")
    return value


def _integer(value: Any, where: str, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise _invalid(where, f"{value!r} is no integer from 0 to {largest}")
    return value


def _invalid(where: str, detail: str) -> PwtError:
    return PwtError(PwtFault.header_invalid, where, detail)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
