"""NumPy `.npz` datasets, read without pickle and without trusting a declared size.

An `.npz` is a zip of `.npy` members: a short header (element type, order, shape), then the raw elements. The header is
read here and not by NumPy, which takes any length and any element type. What it declares must agree with the member's
size, and everything that is going to be allocated is asked for first. Images are streamed block by block, so that neither
a deflate bomb nor a false header takes more memory than it may.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from core.recovery.archive import require_small_directory
from core.recovery.chunks import (
    CHUNK_BYTES,
    TRAIN,
    Allowance,
    Chunk,
    checked_labels,
    invalid_dataset,
    require_label_type,
    split_code,
)

IMAGE_ARRAYS = ("x", "images")
LABEL_ARRAYS = ("y", "labels")
SPLIT_ARRAY = "split"
_USUAL_CHANNELS = (1, 3, 4)
_MAGIC = b"\x93NUMPY"
# Bytes of the header's length, by format version. Version 3 only adds names of structured types, which are refused.
_LENGTH_BYTES = {1: 2, 2: 4}
_MAX_HEADER_BYTES = 10_000
_MAX_AXIS = 2**40
_MAX_AXES = 8
# A whole-array element type as NumPy spells it: byte order, kind, and bytes (characters for text).
_ELEMENT_TYPE = re.compile(r"[<>|=]?[biufcSUVO]\d{0,6}|[<>|=]?[mM]8(\[[^]]{0,20}\])?")
_MAX_SPLIT_NAME_BYTES = 256
# What each row costs beside its image: a label as int64 and a split code.
_BYTES_BESIDE_AN_IMAGE = 9


def read_npz(path: Path) -> Iterator[Chunk]:
    """Stream the examples of an `.npz` file. Raises EngineError("dataset_invalid")."""
    try:
        require_small_directory(path)
        with zipfile.ZipFile(path) as archive:
            yield from _read(archive)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        OverflowError,
        NotImplementedError,
        RuntimeError,
        UnicodeDecodeError,
    ) as error:
        raise invalid_dataset(
            f"The .npz file cannot be read ({error}); it may be truncated. Upload it again."
        ) from error


@dataclass(frozen=True)
class _Array:
    """One member of the archive and what its header declares."""

    name: str
    info: zipfile.ZipInfo
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    header_bytes: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        return self.shape[0] * self.row_bytes


def _read(archive: zipfile.ZipFile) -> Iterator[Chunk]:
    allowance = Allowance()
    images = _find(archive, IMAGE_ARRAYS, allowance)
    if images is None:
        raise invalid_dataset(
            f"The archive holds the arrays {_names(archive)[:10]}; an image array `x` or `images` is needed "
            "(np.savez(path, x=images, y=labels))."
        )
    _require_images(images)
    allowance.take(images.shape[0] * _BYTES_BESIDE_AN_IMAGE, f"array `{images.name}`")
    labels = _labels(archive, _find(archive, LABEL_ARRAYS, allowance), images)
    splits = _splits(archive, _find(archive, (SPLIT_ARRAY,), allowance), images)
    row = 0
    for block in _blocks(archive, images):
        end = row + len(block)
        yield Chunk(
            _in_layout(block, f"array `{images.name}`", row),
            labels[row:end] if labels is not None else None,
            splits[row:end],
        )
        row = end


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _find(archive: zipfile.ZipFile, names: tuple[str, ...], allowance: Allowance) -> _Array | None:
    found = [info for info in archive.infolist() if info.filename.removesuffix(".npy") in names]
    if len(found) > 1:
        raise invalid_dataset(f"The archive holds {[info.filename for info in found]}; only one of them can be meant.")
    if not found:
        return None
    array = _header(archive, found[0])
    allowance.take(array.size_bytes, f"array `{array.name}`")
    return array


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Array:
    name = info.filename.removesuffix(".npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise invalid_dataset(
            f"array `{name}` is compressed by zip method {info.compress_type}; save it with np.savez or "
            "np.savez_compressed."
        )
    with archive.open(info) as member:
        declared, header_bytes = _declaration(member, name)
    dtype, shape = _element_type(declared.get("descr"), name), _shape(declared.get("shape"), name)
    array = _Array(name, info, dtype, shape, declared.get("fortran_order") is True, header_bytes)
    if info.file_size != header_bytes + array.size_bytes:
        raise invalid_dataset(
            f"array `{name}` declares {array.size_bytes:,} bytes of {dtype} {list(shape)}, but its member in the archive "
            f"has {info.file_size - header_bytes:,}."
        )
    return array


def _declaration(member: IO[bytes], name: str) -> tuple[dict[object, object], int]:
    """What the header of an `.npy` member says, and the number of bytes in front of the elements."""
    prefix = member.read(len(_MAGIC) + 2)
    if prefix[: len(_MAGIC)] != _MAGIC or len(prefix) != len(_MAGIC) + 2:
        raise invalid_dataset(f"array `{name}` does not begin like a NumPy array; save it with np.savez.")
    major, minor = prefix[-2:]
    if major not in _LENGTH_BYTES:
        raise invalid_dataset(
            f"array `{name}` is stored in version {major}.{minor} of the NumPy format; versions 1 and 2 hold every array "
            "of plain numbers or text."
        )
    length = _read_exactly(member, _LENGTH_BYTES[major], name)
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise invalid_dataset(
            f"array `{name}` has a header of {header_bytes:,} bytes; the limit is {_MAX_HEADER_BYTES:,}. Save the array "
            "anew with np.savez."
        )
    text = _read_exactly(member, header_bytes, name).decode("latin1")
    try:
        declared = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise invalid_dataset(f"array `{name}` has a header that is not NumPy's: {text[:80]!r}.") from error
    if not isinstance(declared, dict) or not isinstance(declared.get("fortran_order"), bool):
        raise invalid_dataset(f"array `{name}` has a header that is not NumPy's: {text[:80]!r}.")
    return declared, len(prefix) + len(length) + header_bytes


def _element_type(descr: object, name: str) -> np.dtype:
    """The type of one element: a number or a piece of text, never a record, a block of numbers, or nothing at all."""
    if not isinstance(descr, str):
        raise invalid_dataset(
            f"array `{name}` has elements of the compound type {str(descr)[:80]}; store each field as an array of its own."
        )
    try:
        dtype = np.dtype(descr) if _ELEMENT_TYPE.fullmatch(descr) else None
    except TypeError:
        dtype = None
    if dtype is None:
        raise invalid_dataset(f"array `{name}` has elements of the unknown type {descr[:40]!r}.")
    if dtype.hasobject:
        raise invalid_dataset(
            f"array `{name}` holds Python objects, which only unpickling could read; store plain numbers."
        )
    if dtype.itemsize == 0:
        raise invalid_dataset(f"array `{name}` has elements of no bytes ({descr}); store plain numbers or text.")
    return dtype


def _shape(shape: object, name: str) -> tuple[int, ...]:
    whole = isinstance(shape, tuple) and all(type(size) is int and 0 <= size <= _MAX_AXIS for size in shape)
    if not whole or len(shape) > _MAX_AXES:
        raise invalid_dataset(
            f"array `{name}` declares the shape {str(shape)[:80]}; at most {_MAX_AXES} axes of at most {_MAX_AXIS:,} are "
            "read."
        )
    if not shape or 0 in shape:
        raise invalid_dataset(f"array `{name}` has shape {list(shape)}; it needs at least one row.")
    return shape


def _require_images(array: _Array) -> None:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise invalid_dataset(
            f"array `{array.name}` is of type {array.dtype}; images are uint8 (0–255) or floats (taken as they are)."
        )
    if len(array.shape) not in (3, 4):
        raise invalid_dataset(
            f"array `{array.name}` has shape [N, {', '.join(map(str, array.shape[1:]))}]; images are [N, C, H, W], "
            "[N, H, W, C] or [N, H, W]."
        )


def _labels(archive: zipfile.ZipFile, array: _Array | None, images: _Array) -> np.ndarray | None:
    if array is None:
        return None
    source = f"array `{array.name}`"
    require_label_type(array.dtype, source)
    return checked_labels(_one_per_image(archive, array, images), source)


def _one_per_image(archive: zipfile.ZipFile, array: _Array, images: _Array) -> np.ndarray:
    if array.shape[0] != images.shape[0]:
        raise invalid_dataset(
            f"array `{array.name}` has {array.shape[0]} rows and array `{images.name}` has {images.shape[0]}; "
            "there must be one per image."
        )
    return np.concatenate(list(_blocks(archive, array)))


def _splits(archive: zipfile.ZipFile, array: _Array | None, images: _Array) -> np.ndarray:
    if array is None:
        return np.full(images.shape[0], TRAIN, np.int8)
    if array.dtype.kind not in "US" or len(array.shape) != 1:
        raise invalid_dataset(
            f"array `{array.name}` is {array.dtype} of shape {list(array.shape)}; one of the names train, val, test per "
            "image is needed."
        )
    if array.dtype.itemsize > _MAX_SPLIT_NAME_BYTES:
        raise invalid_dataset(
            f"array `{array.name}` has names of up to {array.dtype.itemsize:,} bytes; train, val and test are shorter."
        )
    names, first_rows, position = np.unique(
        _one_per_image(archive, array, images), return_index=True, return_inverse=True
    )
    codes = [split_code(name, f"array `{array.name}`", row) for name, row in zip(names, first_rows, strict=True)]
    return np.array(codes, np.int8)[position]


def _blocks(archive: zipfile.ZipFile, array: _Array) -> Iterator[np.ndarray]:
    """The array's rows in blocks of about CHUNK_BYTES."""
    rows_per_block = max(1, CHUNK_BYTES // max(1, array.row_bytes))
    with archive.open(array.info) as member:
        _read_exactly(member, array.header_bytes, array.name)
        if array.fortran_order and len(array.shape) > 1:
            # Column-major elements interleave the rows, so that no block of rows is contiguous.
            data = _read_exactly(member, array.size_bytes, array.name)
            whole = np.frombuffer(data, array.dtype).reshape(array.shape[::-1]).transpose()
            yield from (whole[row : row + rows_per_block] for row in range(0, array.shape[0], rows_per_block))
            return
        for row in range(0, array.shape[0], rows_per_block):
            rows = min(rows_per_block, array.shape[0] - row)
            data = _read_exactly(member, rows * array.row_bytes, array.name)
            yield np.frombuffer(data, array.dtype).reshape(rows, *array.shape[1:])


def _read_exactly(member: IO[bytes], size_bytes: int, name: str) -> bytes:
    data = member.read(size_bytes)
    if len(data) != size_bytes:
        raise invalid_dataset(f"array `{name}` ends early; the file is truncated.")
    return data


def _in_layout(block: np.ndarray, source: str, first_row: int) -> np.ndarray:
    """One block of images as [n, C, H, W] in uint8 or float32."""
    if block.ndim == 3:
        block = block[:, None]
    if _channels_last(block.shape[1], block.shape[3]):
        block = block.transpose(0, 3, 1, 2)
    if block.dtype == np.uint8:
        return np.ascontiguousarray(block)
    block = np.ascontiguousarray(block, np.float32)
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
    if not finite.all():
        raise invalid_dataset(
            f"{source}, row {first_row + int(np.argmin(finite))}: the image holds a value that is not finite."
        )
    return block


def _channels_last(first: int, last: int) -> bool:
    """Whether [N, first, H or W, last] is NHWC: the axis of 1, 3 or 4 is the channels, else the smaller one; a tie is NCHW."""
    first_usual, last_usual = first in _USUAL_CHANNELS, last in _USUAL_CHANNELS
    if first_usual != last_usual:
        return last_usual
    return last < first
