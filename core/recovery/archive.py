"""Shards in a tar: each regular member named train*, val* or test* is handed out as a file of its own.

Nothing is extracted by name. The sizes that members declare are added up before anything is read, compressed archives
included, and a reader that is asked for one unreasonably large header refuses (tarfile would hold it in memory).
"""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from core.recovery.chunks import MAX_DECODED_BYTES, TEST, TRAIN, VAL, invalid_dataset

MAX_MEMBERS = 10_000
_COPY_BYTES = 2**20
_SPLIT_OF_PREFIX = {"train": TRAIN, "val": VAL, "test": TEST}


def shards(path: Path, *, compressed: bool) -> Iterator[tuple[str, int, BinaryIO]]:
    """(member name, split code, seekable file) of each Parquet shard, in archive order; the file lives until the next one.

    Raises EngineError("dataset_invalid").
    """
    found = False
    try:
        with (
            gzip.open(path) if compressed else path.open("rb") as stream,
            tarfile.open(fileobj=_BoundedReads(stream), mode="r:") as archive,
        ):
            for member in _safe_members(archive):
                split = _split_of(member.name)
                found = True
                with tempfile.TemporaryFile() as file:
                    shutil.copyfileobj(archive.extractfile(member), file, _COPY_BYTES)
                    file.seek(0)
                    yield member.name, split, file
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise invalid_dataset(
            f"The tar archive cannot be read ({error}); it may be truncated. Upload it again."
        ) from error
    if not found:
        raise invalid_dataset("The tar archive holds no .parquet file; shards named train*, val* and test* are needed.")


def _safe_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The Parquet members, after refusing everything that no dataset needs."""
    total_bytes = 0
    seen: set[PurePosixPath] = set()
    for count, member in enumerate(archive, start=1):
        name = member.name
        if count > MAX_MEMBERS:
            raise invalid_dataset(f"The tar archive has more than {MAX_MEMBERS:,} members; use fewer, larger shards.")
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise invalid_dataset(f"The tar member {name[:80]!r} points outside the archive; use plain relative names.")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise invalid_dataset(f"The tar member {name[:80]!r} is not a regular file; links and devices are refused.")
        total_bytes += member.size
        if total_bytes > MAX_DECODED_BYTES:
            raise invalid_dataset(f"The tar archive declares more than {MAX_DECODED_BYTES:,} bytes of files.")
        path = PurePosixPath(name)
        if not path.name.endswith(".parquet") or path.name.startswith("."):
            continue
        if path in seen:
            raise invalid_dataset(
                f"The tar archive holds {name[:80]!r} twice; its examples would count double. Pack each shard once."
            )
        seen.add(path)
        yield member


def _split_of(name: str) -> int:
    """From the innermost part of the path that says so: `train-00000.parquet`, `plain_text/train/0000.parquet`."""
    for part in reversed(PurePosixPath(name).parts):
        match = re.match("train|val|test", part.lower())
        if match:
            return _SPLIT_OF_PREFIX[match[0]]
    raise invalid_dataset(
        f"The shard {name[:80]!r} does not say its split; name shards train*.parquet, val*.parquet and test*.parquet."
    )


class _BoundedReads:
    """A file that refuses one large read: tarfile reads an extended header in one piece, whatever size it declares."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _COPY_BYTES:
            raise invalid_dataset(f"The tar archive has a header of {size:,} bytes; the limit is {_COPY_BYTES:,}.")
        return self._stream.read(size)
