"""What kind of dataset a file is, told by its content and never by its name, and the stream of its examples.

npz            NumPy arrays
parquet        one Parquet file in the Hugging Face image layout
parquet_tar    a .tar or .tar.gz of Parquet shards        parquet_zip    a .zip of them
folder_tar     a .tar or .tar.gz of class folders         folder_zip     a .zip of them
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from core.recovery.archive import Archive, TarArchive, ZipArchive, require_small_directory
from core.recovery.chunks import Allowance, Chunk, invalid_dataset
from core.recovery.encoded_images import Conversion, ImageDecoder
from core.recovery.folders import folder_layout, holds_shards, read_folders, shard_split
from core.recovery.npz import read_npz
from core.recovery.parquet import read_parquet

_ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06")


def open_dataset(path: Path, conversion: Conversion | None = None) -> tuple[str, Iterator[Chunk]]:
    """The layout's name and its examples, all of one shape and type. Raises EngineError("dataset_invalid").

    conversion: for encoded images; arrays are refused with one.
    """
    decoder = ImageDecoder(Allowance(), torch.get_num_threads(), conversion)
    format_name, chunks = _open(path, decoder)
    if conversion and format_name == "npz":
        raise invalid_dataset(
            "convert is for encoded images, and this file holds arrays, which are taken as they are. Leave convert out, and "
            "resize the arrays before they are saved."
        )
    return format_name, _alike(chunks)


def _open(path: Path, decoder: ImageDecoder) -> tuple[str, Iterator[Chunk]]:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_ZIP_HEADS):
        return ("npz", read_npz(path)) if _holds_arrays(path) else _read_archive(ZipArchive(path), decoder)
    if head.startswith(b"PAR1"):
        return "parquet", _read_parquet_file(path, decoder)
    if head.startswith(b"\x1f\x8b"):
        return _read_archive(TarArchive(path, compressed=True), decoder)
    if head[257:262] == b"ustar":
        return _read_archive(TarArchive(path, compressed=False), decoder)
    if head and not any(head):
        raise invalid_dataset(
            "The file begins with zeros only, as a tar archive without members does; pack folders named after the classes "
            "into it, or shards named train*.parquet, val*.parquet and test*.parquet."
        )
    found = "is empty" if not head else f"begins with {head[:8]!r}"
    hint = " A bare .npy has no labels: use np.savez(path, x=images, y=labels)." if head[:6] == b"\x93NUMPY" else ""
    raise invalid_dataset(
        f"The file is neither .npz, nor .parquet, nor a .tar, .tar.gz or .zip of class folders or Parquet shards; it {found}."
        f"{hint}"
    )


def _holds_arrays(path: Path) -> bool:
    """Whether a zip is an `.npz`: it has arrays on its top level. One that cannot be read is called an archive."""
    require_small_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") and "/" not in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError):
        return False


def _read_archive(archive: Archive, decoder: ImageDecoder) -> tuple[str, Iterator[Chunk]]:
    if holds_shards(archive):
        return f"parquet_{archive.kind}", _read_shards(archive, decoder)
    return f"folder_{archive.kind}", read_folders(archive, folder_layout(archive), decoder)


def _read_shards(archive: Archive, decoder: ImageDecoder) -> Iterator[Chunk]:
    shards = [member for member in archive.members if member.path.suffix.lower() == ".parquet"]
    splits = {member.position: shard_split(member.path) for member in shards}
    for member, file in archive.files(shards):
        yield from read_parquet(file, str(member.path), splits[member.position], decoder)


def _read_parquet_file(path: Path, decoder: ImageDecoder) -> Iterator[Chunk]:
    with path.open("rb") as file:
        yield from read_parquet(file, "the Parquet file", None, decoder)


def _alike(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Refuse files of one dataset that disagree on labels or on what they mean."""
    first: Chunk | None = None
    for chunk in chunks:
        if first is None:
            first = chunk
        if (chunk.labels is None) != (first.labels is None):
            raise invalid_dataset(
                "Some files of the dataset have labels and others have none; give all of them labels."
            )
        if chunk.class_names != first.class_names:
            raise invalid_dataset(
                "The files of the dataset name their classes differently, so that one label would mean two things; write "
                "them anew with the same class names in the same order."
            )
        yield chunk
