"""Objects: large immutable files by key. One protocol, two stores: local files here, S3 in `store/s3.py`.

An object is either completely there or not there at all: bytes go to a temporary file, reach the disk, and only then
get their name. All copies go chunk by chunk, so memory stays flat whatever the size.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import unquote, urlsplit

from store.errors import InvalidObjectKey, ObjectMissing, StorageUnavailable
from store.files import begin_writing, move_into_place
from store.parts import LocalParts, PartStore

CHUNK_BYTES = 1 << 20
WRITEBACK_BYTES = 8 << 20
"""So much is sent on its way to the disk at a time, instead of everything when an object is committed."""

MAX_KEY_LENGTH = 1024
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")


@dataclass(frozen=True)
class StoredObject:
    """What a writer has stored; `sha256` is hex, of the bytes as they went in."""

    key: str
    size: int
    sha256: str


class ObjectWriter(Protocol):
    """Writes one object. As a context manager it aborts unless it was committed."""

    def write(self, data: bytes) -> None: ...
    def commit(self) -> StoredObject: ...
    def abort(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ObjectReader(Protocol):
    """Reads one object, or a range of it. Iterate for chunks; `size` is the number of bytes that it yields in all."""

    size: int

    def read(self, size: int = -1) -> bytes: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ObjectStore(Protocol):
    """`parts` takes objects that arrive in parts. What cannot be reached or written raises OSError, in words."""

    parts: PartStore

    def open_writer(self, key: str) -> ObjectWriter: ...
    def open_reader(self, key: str, start: int = 0, end: int | None = None) -> ObjectReader: ...
    def delete(self, key: str) -> None: ...
    def delete_prefix(self, prefix: str) -> None: ...
    def fetch(self, key: str, path: Path, sha256: str | None = None) -> None: ...
    def keys(self, *, older_than_s: float) -> Iterator[str]: ...
    def check(self) -> None:
        """Raises OSError unless objects can be kept here now."""

    def download_url(self, key: str, *, disposition: str, media_type: str) -> str | None:
        """Where a client can GET this object without us, for a while, with this Content-Disposition and Content-Type;
        None where only we can read."""


def object_store(url: str, public_url: str | None = None) -> ObjectStore:
    """The store that a `PENNYWEIGHT_STORAGE_URL` names. Raises ValueError.

    `public_url` is where clients reach the same S3 store; given one, they are sent there with presigned URLs.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from store.s3 import S3Objects  # boto3 takes half a second, and one machine does not need it

        return S3Objects.from_url(url, public_url)
    if public_url is not None:
        raise ValueError("PENNYWEIGHT_STORAGE_PUBLIC_URL is for an s3: PENNYWEIGHT_STORAGE_URL; local files have none.")
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError(f"PENNYWEIGHT_STORAGE_URL must look like file:///absolute/folder or s3://bucket, not {url!r}.")
    return LocalObjects(Path(unquote(parts.path)))


def check_key(key: str) -> None:
    """Raises InvalidObjectKey."""
    if len(key) > MAX_KEY_LENGTH or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidObjectKey(key)


def copy_checked(key: str, reader: ObjectReader, path: Path, sha256: str | None) -> None:
    """Write what `reader` gives into a new file. Raises StorageUnavailable, the file removed, if its digest is another
    one: a connection may end in the middle of a header and still look whole, and disks rot."""
    digest = hashlib.sha256()
    with Path(path).open("xb") as target:
        for chunk in reader:
            digest.update(chunk)
            target.write(chunk)
    if sha256 is not None and digest.hexdigest() != sha256:
        size = Path(path).stat().st_size
        Path(path).unlink()
        raise StorageUnavailable(f"The stored object {key} came as {size} bytes that are not what was uploaded.")


class LocalObjects:
    """Objects as files under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root).absolute()
        self._temporary = self._root / ".tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._remove_orphans()
        self.parts = LocalParts(self._root, self._root / ".parts")

    def open_writer(self, key: str) -> LocalWriter:
        return LocalWriter(key, self._path(key), self._root, self._temporary)

    def open_reader(self, key: str, start: int = 0, end: int | None = None) -> LocalReader:
        """Bytes `start` (inclusive) to `end` (exclusive; None means to the end). Raises ObjectMissing, ValueError."""
        return LocalReader(key, self._path(key), start, end)

    def delete(self, key: str) -> None:
        """Remove one object; a missing one is no error."""
        path = self._path(key)
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
        self._remove_empty_parents(path)

    def delete_prefix(self, prefix: str) -> None:
        """Remove the object with this key and every object in the folder of this name."""
        path = self._path(prefix)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=False, onerror=_ignore_missing)
        self.delete(prefix)

    def fetch(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Copy an object to a new file at `path`: a copy, because whoever gets it may write to it. Raises ObjectMissing,
        and StorageUnavailable where the bytes are not those of `sha256`."""
        with self.open_reader(key) as reader:
            copy_checked(key, reader, path, sha256)

    def keys(self, *, older_than_s: float) -> Iterator[str]:
        """Keys of the objects that became visible longer ago than this, in no order. May run while others write."""
        latest = time.time() - older_than_s
        for folder, subfolders, files in os.walk(self._root):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in files:
                path = Path(folder) / name
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < latest:
                        yield path.relative_to(self._root).as_posix()

    def check(self) -> None:
        """Writing proves more than reading: a full or read-only disk shows. The probe is never committed."""
        with self.open_writer("probe") as writer:
            writer.write(b"ready?")

    def download_url(self, key: str, *, disposition: str, media_type: str) -> None:
        return None

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._root.joinpath(*key.split("/"))

    def _remove_empty_parents(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self._root:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # not empty
                return

    def _remove_orphans(self) -> None:
        """Remove temporary files whose writer is gone: a living writer holds a lock on its own."""
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


class LocalWriter:
    """Writes one object through a locked temporary file beside the objects."""

    def __init__(self, key: str, target: Path, root: Path, temporary: Path) -> None:
        self._key = key
        self._target = target
        self._root = root
        self._descriptor, self._path = _locked_temporary(temporary)
        self._digest = hashlib.sha256()
        self._size = 0
        self._sent = 0
        self._open = True

    def write(self, data: bytes) -> None:
        if not self._open:
            raise ValueError(f"The writer of {self._key} is closed.")
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._digest.update(data)
        self._size += len(data)
        if self._size - self._sent >= WRITEBACK_BYTES:
            begin_writing(self._descriptor, self._sent, self._size - self._sent)
            self._sent = self._size

    def commit(self) -> StoredObject:
        """Make the object visible, replacing one of the same key; when this returns, it survives a power cut."""
        if not self._open:
            raise ValueError(f"The writer of {self._key} is closed.")
        os.utime(self._descriptor)  # the age of an object counts from here, however long its upload took
        os.fsync(self._descriptor)
        move_into_place(self._path, self._target, self._root)
        self._close()
        return StoredObject(self._key, self._size, self._digest.hexdigest())

    def abort(self) -> None:
        """Forget everything written; after a commit this does nothing."""
        if self._open:
            self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        self._open = False
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class LocalReader:
    """Reads a range of one file."""

    def __init__(self, key: str, path: Path, start: int, end: int | None) -> None:
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"Not a range: {start} to {end}.")
        try:
            self._file = path.open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(key) from None
        length = os.fstat(self._file.fileno()).st_size
        self._remaining = max(0, (length if end is None else min(end, length)) - start)
        self.size = self._remaining
        self._file.seek(start)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; all that remain for a negative size; `b""` at the end."""
        if size >= 0:
            data = self._file.read(min(size, self._remaining))
            self._remaining -= len(data)
            return data
        return b"".join(self)

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _locked_temporary(folder: Path) -> tuple[int, Path]:
    while True:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix="write-")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, Path(name)
        os.close(descriptor)  # a starting process took it for an orphan before it was locked


def _ignore_missing(function: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
