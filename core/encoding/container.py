"""The `.pwt` file: a packed JSON header and the payloads of its tensors, one after the other (docs/pwt.md).

A payload's place follows from the lengths before it, so that payloads can neither overlap nor leave gaps. Everything that
the header says is checked against caps and the file's length before anything of that size is allocated.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core.encoding import csc, formats
from core.encoding.ans_decoder import CONTEXTS
from core.encoding.errors import PwtError, PwtFault
from core.encoding.header import (
    MAGIC,
    MAX_HEADER_BYTES,
    PRELUDE,
    VERSIONS,
    PwtHeader,
    SkeletonEntry,
    TensorEntry,
    header_json,
    parse_header,
)
from core.encoding.layout import Layout
from core.encoding.quantized import QuantizedTensor

ALIGNMENT = 8
MAX_DECODED_BYTES = 1 << 32


@dataclass(frozen=True)
class PwtSummary:
    """What was written: `file_bytes`, and per tensor its payload's bytes and its format."""

    file_bytes: int
    header_bytes: int
    bytes_of: Mapping[str, int]
    format_of: Mapping[str, str]


def write_pwt(
    path: str | Path,
    tensors: Mapping[str, QuantizedTensor | np.ndarray],
    about: Mapping[str, Any],
    format: str = formats.AUTO,
    skeleton: bytes | None = None,
) -> PwtSummary:
    """Write quantised tensors in `format` and plain arrays as they are, in the mapping's order.

    `about` is any JSON object (architecture, where the network comes from). `skeleton` is an ONNX model whose initialisers
    of these names are empty: a reader puts the weights back into it. A float32 array with many zeros is stored by its
    survivors where that is smaller, unless another format than `auto` or `csc` is asked for.
    """
    coded = {name: _encode(name, value, format) for name, value in tensors.items()}
    version = VERSIONS[any(_of_version_2(*one) for one in coded.values())]
    bare = zlib.compress(skeleton, 9) if skeleton else b""
    about_skeleton = SkeletonEntry(len(bare), len(skeleton), zlib.crc32(bare)) if skeleton else None
    header = header_json(PwtHeader(dict(about), [entry for entry, _ in coded.values()], about_skeleton))
    packed = zlib.compress(header, 9)
    if len(header) > MAX_HEADER_BYTES:
        raise formats.EncodingError(f"the header has {len(header)} bytes; at most {MAX_HEADER_BYTES} can be read again")
    try:
        parse_header(header)
    except PwtError as error:
        raise formats.EncodingError(f"what was written could not be read again: {error}") from error
    prelude = PRELUDE.pack(MAGIC, version, len(packed), len(header), zlib.crc32(packed))
    payloads = [payload for _, payload in coded.values()] + ([bare] if skeleton else [])
    with Path(path).open("wb") as file:
        size = file.write(prelude + packed)
        for payload in payloads:
            size += file.write(bytes(-size % ALIGNMENT))
            size += file.write(payload)
    return PwtSummary(
        file_bytes=size,
        header_bytes=len(prelude) + len(packed),
        bytes_of={name: len(payload) for name, (_, payload) in coded.items()},
        format_of={name: entry.format for name, (entry, _) in coded.items()},
    )


def read_pwt(
    path: str | Path, max_decoded_bytes: int = MAX_DECODED_BYTES, *, threads: int = 1
) -> tuple[dict[str, QuantizedTensor | np.ndarray], dict[str, Any]]:
    """Every tensor of a file and its `about`. Raises PwtError for whatever is wrong with it."""
    with Path(path).open("rb") as file:
        header, offsets = _open(file, max_decoded_bytes)
        tensors = {
            entry.name: _decode(entry, _read(file, offset, entry.bytes), threads)
            for entry, offset in zip(header.tensors, offsets, strict=False)
        }
        if header.skeleton:
            packed = _read(file, offsets[-1], header.skeleton.bytes)
            _unpacked(packed, header.skeleton.unpacked_bytes, header.skeleton.crc32, "onnx_skeleton")
    return tensors, header.about


def _of_version_2(entry: TensorEntry, payload: bytes) -> bool:
    return entry.format == "ans" and payload[4 * entry.levels] == CONTEXTS


def _encode(name: str, value: QuantizedTensor | np.ndarray, format: str) -> tuple[TensorEntry, bytes]:
    if isinstance(value, QuantizedTensor):
        try:
            payload, chosen = formats.encode(value, format)
        except formats.EncodingError as error:
            raise formats.EncodingError(f"{name}: {error}") from error
        shape, kind, levels, zero = value.indices.shape, "float32", len(value.codebook), value.zero
    else:
        array = np.asarray(value, order="C")
        chosen, shape, kind, levels, zero = formats.RAW, array.shape, array.dtype.name, 0, None
        payload = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        if kind == "float32" and format in (formats.AUTO, "csc") and csc.size_of_plain(array) < len(payload):
            chosen, payload = "csc", csc.encode_plain(array)
    entry = TensorEntry(name, tuple(map(int, shape)), kind, chosen, levels, zero, len(payload), zlib.crc32(payload))
    return entry, payload


def _open(file: BinaryIO, max_decoded_bytes: int) -> tuple[PwtHeader, list[int]]:
    """The header and the payloads' offsets, the skeleton's last if there is one. No payload is read."""
    prelude = file.read(PRELUDE.size)
    if prelude[: len(MAGIC)] != MAGIC:
        raise PwtError(PwtFault.not_pwt, "file", "it does not begin as a .pwt file does")
    if len(prelude) < PRELUDE.size:
        raise PwtError(PwtFault.truncated, "file", f"{len(prelude)} bytes are no whole prelude")
    _, version, packed_bytes, header_bytes, checksum = PRELUDE.unpack(prelude)
    if version not in VERSIONS:
        raise PwtError(PwtFault.unsupported_version, "file", f"version {version}; this reader knows {VERSIONS}")
    if max(packed_bytes, header_bytes) > MAX_HEADER_BYTES:
        raise PwtError(PwtFault.header_too_large, "header", f"above its cap of {MAX_HEADER_BYTES} bytes")
    end, size = PRELUDE.size + packed_bytes, os.fstat(file.fileno()).st_size
    if size < end:
        raise PwtError(PwtFault.truncated, "header", f"{packed_bytes} bytes, and the file ends before")
    header = parse_header(_unpacked(file.read(packed_bytes), header_bytes, checksum, "header"))
    decoded = sum(math.prod(entry.shape) * entry.item_bytes for entry in header.tensors)
    decoded += header.skeleton.unpacked_bytes if header.skeleton else 0
    if decoded > max_decoded_bytes:
        raise PwtError(PwtFault.too_large, "file", f"it unpacks to {decoded} bytes; {max_decoded_bytes} are allowed")
    offsets = []
    for length in [entry.bytes for entry in header.tensors] + ([header.skeleton.bytes] if header.skeleton else []):
        begin = end + -end % ALIGNMENT
        if begin + length > size:
            raise PwtError(PwtFault.truncated, "file", f"a payload of {length} bytes at {begin} goes beyond the end")
        if any(_read(file, end, begin - end)):
            raise PwtError(PwtFault.bad_padding, "file", f"the bytes {end} to {begin} are not zero")
        offsets.append(begin)
        end = begin + length
    if end != size:
        raise PwtError(PwtFault.trailing_bytes, "file", f"{size - end} bytes after the last payload")
    return header, offsets


def _read(file: BinaryIO, offset: int, size: int) -> memoryview:
    file.seek(offset)
    content = file.read(size)
    if len(content) < size:
        raise PwtError(PwtFault.truncated, "file", "it has become shorter")
    return memoryview(content)


def _unpacked(packed: bytes | memoryview, size: int, checksum: int, where: str) -> bytes:
    if zlib.crc32(packed) != checksum:
        code = PwtFault.header_corrupt if where == "header" else PwtFault.checksum_mismatch
        raise PwtError(code, where, "its bytes are not those that were written")
    unpacker, code = zlib.decompressobj(), PwtFault.header_corrupt if where == "header" else PwtFault.bad_skeleton
    try:
        content = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise PwtError(code, where, str(error)) from error
    if len(content) != size or not unpacker.eof or unpacker.unused_data:
        raise PwtError(code, where, f"it does not unpack to the {size} bytes that it declares")
    return content


def _decode(entry: TensorEntry, payload: memoryview, threads: int) -> QuantizedTensor | np.ndarray:
    if zlib.crc32(payload) != entry.crc32:
        raise PwtError(PwtFault.checksum_mismatch, entry.name, "its bytes are not those that were written")
    try:
        if entry.levels:
            return formats.decode(payload, entry.format, Layout(entry.shape, entry.levels, entry.zero), threads)
        if entry.format == "csc":
            layout = Layout(entry.shape, 0)
            return csc.Decoder(payload, layout, None).values(0, layout.columns).reshape(entry.shape)
    except PwtError as error:
        raise PwtError(error.code, entry.name, str(error)) from error
    if len(payload) != math.prod(entry.shape) * entry.item_bytes:
        raise PwtError(PwtFault.bad_extent, entry.name, f"{len(payload)} bytes are not its shape's")
    if entry.type == "bool" and any(byte > 1 for byte in payload):
        raise PwtError(PwtFault.bad_index, entry.name, "a truth value is neither 0 nor 1")
    return np.frombuffer(payload, np.dtype(entry.type).newbyteorder("<")).astype(entry.type).reshape(entry.shape)
