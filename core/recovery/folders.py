"""Archives of class folders: `class/image.*`, with folders train, val (or validation) and test around them or not.

A class is a folder, and the classes' order is that of their sorted names, as torchvision's image folders have it. Folders
that everything lies in are looked through. Images that lie in no class folder at all are an unlabelled dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import numpy as np

from core.recovery.archive import Archive, Member, is_ignored
from core.recovery.chunks import TRAIN, Chunk, find_split_code, invalid_dataset
from core.recovery.encoded_images import MAX_ENCODED_BYTES, ImageDecoder

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_NOTE_SUFFIXES = frozenset({".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf"})
_OTHER_IMAGE_SUFFIXES = frozenset({".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".npy"})
# Encoded images that are held at once.
_BATCH_IMAGES = 256
_BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class FolderLayout:
    """Which member is which example. labels: per image, or None. splits: codes per image."""

    images: list[Member]
    labels: list[int] | None
    splits: list[int]
    class_names: tuple[str, ...] | None


def folder_layout(archive: Archive) -> FolderLayout:
    """What the folders of an archive say. Raises EngineError("dataset_invalid") naming the member that does not fit."""
    images = [member for member in archive.members if _is_image(archive, member)]
    if not images:
        raise invalid_dataset(
            f"The {archive.kind} archive holds no image and no .parquet file. Pack folders named after the classes, with "
            f"images in them ({', '.join(sorted(IMAGE_SUFFIXES))}), or shards named train*, val* and test*."
        )
    depth, has_splits = _root(images)
    rest = [member.path.parent.parts[depth:] for member in images]
    splits = [find_split_code(parts[0]) if has_splits else TRAIN for parts in rest]
    classes = [parts[1:] if has_splits else parts for parts in rest]
    _require_one_depth(archive, images, classes, has_splits)
    if not classes[0]:
        return FolderLayout(images, None, splits, None)
    names = sorted({one[0] for one in classes})
    _require_no_empty_class(archive, depth + has_splits, names)
    code_of = {name: code for code, name in enumerate(names)}
    return FolderLayout(images, [code_of[one[0]] for one in classes], splits, tuple(names))


def read_folders(archive: Archive, layout: FolderLayout, decoder: ImageDecoder) -> Iterator[Chunk]:
    """Stream the examples in archive order. Raises EngineError("dataset_invalid") naming the member."""
    example_of = {member.position: index for index, member in enumerate(layout.images)}
    pending = archive.contents(layout.images)
    while batch := list(_batch(pending)):
        places = [f"The {archive.kind} member {str(member.path)[:120]!r}" for member, _ in batch]
        examples = [example_of[member.position] for member, _ in batch]
        row = 0
        for images in decoder.decode([data for _, data in batch], places):
            chosen = examples[row : row + len(images)]
            row += len(images)
            labels = None if layout.labels is None else np.array([layout.labels[one] for one in chosen], np.int64)
            splits = np.array([layout.splits[one] for one in chosen], np.int8)
            yield Chunk(images, labels, splits, layout.class_names)


def _batch(pending: Iterator[tuple[Member, bytes]]) -> Iterator[tuple[Member, bytes]]:
    size_bytes = 0
    for member, data in islice(pending, _BATCH_IMAGES):
        yield member, data
        size_bytes += len(data)
        if size_bytes > _BATCH_BYTES:
            return


def _is_image(archive: Archive, member: Member) -> bool:
    """By its name. Notes are passed over; anything else inside a folder might be an image that would be missed."""
    suffix = member.path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        if member.size_bytes > MAX_ENCODED_BYTES:
            raise invalid_dataset(
                f"The {archive.kind} member {str(member.path)[:120]!r} has {member.size_bytes:,} bytes; the limit for one "
                f"image is {MAX_ENCODED_BYTES:,}."
            )
        return True
    if suffix in _NOTE_SUFFIXES or (len(member.path.parts) == 1 and suffix not in _OTHER_IMAGE_SUFFIXES):
        return False
    raise invalid_dataset(
        f"The {archive.kind} member {str(member.path)[:120]!r} is not called like an image "
        f"({', '.join(sorted(IMAGE_SUFFIXES))}). Convert it, or leave it out."
    )


def _require_one_depth(
    archive: Archive, images: list[Member], classes: list[tuple[str, ...]], has_splits: bool
) -> None:
    """Every image in a class folder, or none; and no folders inside those."""
    by_depth = {len(one): member for member, one in zip(images, classes, strict=True)}
    deepest = by_depth[max(by_depth)]
    if len(by_depth) == 1 and max(by_depth) <= 1:
        return
    others = f" and {str(by_depth[min(by_depth)].path)[:120]!r} does not" if len(by_depth) > 1 else ""
    raise invalid_dataset(
        f"The {archive.kind} member {str(deepest.path)[:120]!r} lies {len(deepest.path.parts) - 1} folders deep{others}. Every "
        f"image belongs directly into the folder of its class, as in {'train/' if has_splits else ''}class/image.png."
    )


def _root(images: list[Member]) -> tuple[int, bool]:
    """How many folders lie around everything, and whether the folders inside them are splits."""
    parents = [member.path.parent.parts for member in images]
    depth = 0
    while all(len(parts) > depth + 1 for parts in parents):
        first = {parts[depth] for parts in parents}
        if len(first) > 1 or find_split_code(next(iter(first))) is not None:
            break
        depth += 1
    first = {parts[depth] if len(parts) > depth else None for parts in parents}
    splits = {name for name in first if name is not None and find_split_code(name) is not None}
    if splits and splits != first and max(map(len, parents)) > depth + 1:
        others = sorted(map(str, first - splits - {None})) or ["images"]
        raise invalid_dataset(
            f"The archive holds the folders {sorted(splits)} and beside them {others[:5]}. Give every image a split "
            "(train/class/image.png) or none (class/image.png)."
        )
    return depth, splits == first


def _require_no_empty_class(archive: Archive, depth: int, names: list[str]) -> None:
    """An empty folder would be a class to torchvision and shift the labels of those behind it."""
    empty = {path.parts[depth] for path in archive.folders if len(path.parts) == depth + 1 and not is_ignored(path)}
    missing = sorted(empty - set(names))
    if missing:
        raise invalid_dataset(
            f"The {archive.kind} archive's class folder {missing[0][:80]!r} holds no image. Put its images in, or leave the "
            "folder out if the network has no such class."
        )


def holds_shards(archive: Archive) -> bool:
    """Whether the archive's examples are Parquet shards and not images. Raises EngineError where they are both."""
    suffixes = {member.path.suffix.lower() for member in archive.members}
    if ".parquet" in suffixes and suffixes & IMAGE_SUFFIXES:
        raise invalid_dataset(
            f"The {archive.kind} archive holds Parquet shards and images; pack one kind only, so that no example counts twice."
        )
    return ".parquet" in suffixes


def shard_split(path: PurePosixPath) -> int:
    """The split that a shard's name says, from the innermost part of its path that does: `train-00000.parquet`,
    `plain_text/train/0000.parquet`."""
    for part in reversed(path.parts):
        for prefix in ("train", "val", "test"):
            if part.lower().startswith(prefix):
                return find_split_code(prefix)
    raise invalid_dataset(
        f"The shard {str(path)[:80]!r} does not say its split; name shards train*.parquet, val*.parquet and test*.parquet."
    )
