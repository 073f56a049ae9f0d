"""NumPy `.npz` datasets, read without pickle and without trusting a declared size.

An `.npz` is a zip of `.npy` members: a short header (element type, order, shape), then the raw elements. Images are
streamed from the archive block by block, so that neither a deflate bomb nor a false header allocates more than it may.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from core.recovery.chunks import CHUNK_BYTES, TRAIN, Allowance, Chunk, checked_labels, invalid_dataset, split_code

IMAGE_ARRAYS = ("x", "images")
LABEL_ARRAYS = ("y", "labels")
SPLIT_ARRAY = "split"
_USUAL_CHANNELS = (1, 3, 4)


def read_npz(path: Path) -> Iterator[Chunk]:
    """Stream the examples of an `.npz` file. Raises EngineError("dataset_invalid")."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _read(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
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
    stored_labels = _find(archive, LABEL_ARRAYS, allowance)
    labels = None
    if stored_labels is not None:
        labels = checked_labels(_one_per_image(archive, stored_labels, images), f"array `{stored_labels.name}`")
    splits = _splits(archive, _find(archive, (SPLIT_ARRAY,), allowance), images)
    row = 0
    for block in _blocks(archive, images):
        end = row + len(block)
        yield Chunk(
            _images(block, f"array `{images.name}`", row),
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
    with archive.open(info) as member:
        try:
            version = np.lib.format.read_magic(member)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"format version {version}")
            shape, fortran_order, dtype = readers[version](member)
        except (ValueError, SyntaxError, TypeError) as error:
            raise invalid_dataset(f"array `{name}` has no valid NumPy header ({str(error)[:120]}).") from error
        header_bytes = member.tell()
    if dtype.hasobject:
        raise invalid_dataset(
            f"array `{name}` holds Python objects, which only unpickling could read; store plain numbers."
        )
    if not shape or any(size < 1 for size in shape):
        raise invalid_dataset(f"array `{name}` has shape {list(shape)}; it needs at least one row.")
    array = _Array(name, info, dtype, shape, fortran_order, header_bytes)
    if info.file_size != header_bytes + array.size_bytes:
        raise invalid_dataset(
            f"array `{name}` declares {array.size_bytes:,} bytes of {dtype} {list(shape)}, but its member in the archive "
            f"has {info.file_size - header_bytes:,}."
        )
    return array


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


def _images(block: np.ndarray, source: str, first_row: int) -> np.ndarray:
    """One block in NCHW as uint8 or float32."""
    if block.dtype != np.uint8 and block.dtype.kind != "f":
        raise invalid_dataset(
            f"{source} is of type {block.dtype}; images are uint8 (0–255) or floats (taken as they are)."
        )
    if block.ndim == 3:
        block = block[:, None]
    if block.ndim != 4:
        raise invalid_dataset(
            f"{source} has shape [N, {', '.join(map(str, block.shape[1:]))}]; images are [N, C, H, W], [N, H, W, C] "
            "or [N, H, W]."
        )
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
