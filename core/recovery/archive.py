"""Tar and zip archives, looked through before anything in them is used, and never extracted by name.

First every member is listed and refused if no dataset needs it: names that lead outside, links, devices, names that come
twice, encryption, too many members, and sizes that add up to more than there may be. Only then are members read, in the
archive's order: images as bytes, Parquet shards as temporary files.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from core.recovery.chunks import holds_controls, invalid_dataset
from core.recovery.limits import decoded_limit_bytes

MAX_MEMBERS = 500_000
MAX_NAME_BYTES = 255
# Images and Parquet are compressed already: an archive that shrinks them a hundredfold holds nothing but repetition.
MAX_RATIO = 100
_LEAST_BOMB_BYTES = 64 * 2**20
# The directory of a zip is held in memory: about 100 bytes per member.
_MAX_DIRECTORY_BYTES = 64 * 2**20
_COPY_BYTES = 2**20
_DRIVE = re.compile(r"[A-Za-z]:")
_IGNORED_FILES = frozenset({"thumbs.db", "desktop.ini"})
_ENCRYPTED = 0x1
_READABLE_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of an archive. position: in the archive's own order, ignored members included."""

    path: PurePosixPath
    size_bytes: int
    position: int


class Archive(ABC):
    """A listed archive: its files, and the folders that it names itself."""

    kind: str

    def __init__(self, path: Path) -> None:
        self._path = path
        self.members: list[Member] = []
        self.folders: set[PurePosixPath] = set()
        self._names: set[PurePosixPath] = set()
        self._limit_bytes = decoded_limit_bytes()
        self._packed_bytes = path.stat().st_size
        self._total_bytes = 0
        with self._readable():
            self._list()

    def contents(self, members: Collection[Member]) -> Iterator[tuple[Member, bytes]]:
        """The bytes of each of `members`, in archive order. Raises EngineError("dataset_invalid")."""
        with self._readable():
            for member, file in self._opened({member.position: member for member in members}):
                # In pieces, as a buffered reader passes a large request on as it is.
                yield member, b"".join(iter(lambda file=file: file.read(_COPY_BYTES), b""))

    def files(self, members: Collection[Member]) -> Iterator[tuple[Member, BinaryIO]]:
        """Each of `members` as a seekable file that lives until the next one. Raises EngineError("dataset_invalid")."""
        with self._readable():
            for member, source in self._opened({member.position: member for member in members}):
                with tempfile.TemporaryFile() as file:
                    shutil.copyfileobj(source, file, _COPY_BYTES)
                    file.seek(0)
                    yield member, file

    @abstractmethod
    def _list(self) -> None:
        """Call `_take` for every entry."""

    @abstractmethod
    def _opened(self, wanted: dict[int, Member]) -> Iterator[tuple[Member, IO[bytes]]]:
        """The wanted members, each open for reading until the next one."""

    def _take(self, position: int, name: str, size_bytes: int, *, folder: bool) -> None:
        """Note one entry, or refuse the archive for it."""
        if position >= MAX_MEMBERS:
            raise invalid_dataset(
                f"The {self.kind} archive has more than {MAX_MEMBERS:,} members; pack the images into Parquet shards."
            )
        path = self._safe(name)
        if folder:
            self.folders.add(path)
            return
        self._total_bytes += size_bytes
        if self._total_bytes > self._limit_bytes:
            raise invalid_dataset(
                f"The {self.kind} archive declares more than {self._limit_bytes:,} bytes of files, which is all that this "
                "worker has room for. Use fewer or smaller images."
            )
        if self._total_bytes > max(_LEAST_BOMB_BYTES, MAX_RATIO * self._packed_bytes):
            raise invalid_dataset(
                f"The {self.kind} archive unpacks to more than {MAX_RATIO} times its size; images do not compress like "
                "that. Pack the encoded images as they are."
            )
        if is_ignored(path):
            return
        if path in self._names:
            raise invalid_dataset(
                f"The {self.kind} archive holds {name[:80]!r} twice; its examples would count double. Pack each file once."
            )
        self._names.add(path)
        self.members.append(Member(path, size_bytes, position))

    def _safe(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        if name.startswith("/") or ".." in path.parts or _DRIVE.match(name):
            raise invalid_dataset(
                f"The {self.kind} member {name[:80]!r} points outside the archive; use plain relative names."
            )
        if "\\" in name or holds_controls(name):
            raise invalid_dataset(
                f"The name of the {self.kind} member {name[:80]!r} holds a backslash or a control character; "
                "use plain relative names with '/' between folders."
            )
        if any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
            raise invalid_dataset(
                f"The {self.kind} member {name[:80]!r}… has a name of more than {MAX_NAME_BYTES} bytes; use shorter names."
            )
        return path

    def _refuse_type(self, name: str) -> None:
        raise invalid_dataset(
            f"The {self.kind} member {name[:80]!r} is not a regular file; links and devices are refused. Pack the files "
            "themselves."
        )

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """What damaged archives raise becomes the dataset's error; trouble with our own disk does not."""
        try:
            yield
        except (
            tarfile.TarError,
            zipfile.BadZipFile,
            gzip.BadGzipFile,
            zlib.error,
            struct.error,
            EOFError,
            OSError,
            OverflowError,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise invalid_dataset(
                f"The {self.kind} archive cannot be read ({error}); it may be truncated. Upload it again."
            ) from error


def is_ignored(path: PurePosixPath) -> bool:
    """What file managers leave in archives: hidden files and folders, resource forks, thumbnails."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts) or path.name.lower() in _IGNORED_FILES


class TarArchive(Archive):
    kind = "tar"

    def __init__(self, path: Path, *, compressed: bool) -> None:
        self._compressed = compressed
        super().__init__(path)

    def _list(self) -> None:
        with self._archive() as archive:
            for position, member in enumerate(archive):
                if not member.isdir() and (not member.isreg() or member.issparse()):
                    self._safe(member.name)
                    self._refuse_type(member.name)
                self._take(position, member.name, member.size, folder=member.isdir())

    def _opened(self, wanted: dict[int, Member]) -> Iterator[tuple[Member, IO[bytes]]]:
        with self._archive() as archive:
            for position, entry in enumerate(archive):
                if position in wanted:
                    yield wanted[position], archive.extractfile(entry)

    @contextlib.contextmanager
    def _archive(self) -> Iterator[tarfile.TarFile]:
        with (
            gzip.open(self._path) if self._compressed else self._path.open("rb") as stream,
            tarfile.open(fileobj=_BoundedReads(stream), mode="r:") as archive,
        ):
            yield archive


class ZipArchive(Archive):
    kind = "zip"

    def _list(self) -> None:
        require_small_directory(self._path)
        with zipfile.ZipFile(self._path) as archive:
            for position, entry in enumerate(archive.infolist()):
                name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    self._safe(name)
                    self._refuse_type(name)
                if entry.flag_bits & _ENCRYPTED:
                    raise invalid_dataset(f"The zip member {name[:80]!r} is encrypted; pack it without a password.")
                if entry.compress_type not in _READABLE_METHODS:
                    raise invalid_dataset(
                        f"The zip member {name[:80]!r} is compressed by method {entry.compress_type}; pack it with deflate, "
                        "the usual method, or without compression."
                    )
                self._take(position, name, entry.file_size, folder=entry.is_dir())

    def _opened(self, wanted: dict[int, Member]) -> Iterator[tuple[Member, IO[bytes]]]:
        with zipfile.ZipFile(self._path) as archive:
            for position, entry in enumerate(archive.infolist()):
                if position in wanted:
                    with archive.open(entry) as file:
                        yield wanted[position], file


def require_small_directory(path: Path) -> None:
    """Raise EngineError("dataset_invalid") for a zip whose directory, read in one piece, would fill the memory."""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - (2**16 + 22 + 20 + 56))
        file.seek(start)
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        return
    members, directory_bytes = struct.unpack_from("<HL", tail, end + 10)
    large = end - 20 - 56
    if large >= 0 and tail.startswith(b"PK\x06\x06", large):
        members, directory_bytes = struct.unpack_from("<QQ", tail, large + 32)
    if members > MAX_MEMBERS or min(directory_bytes, path.stat().st_size) > _MAX_DIRECTORY_BYTES:
        raise invalid_dataset(
            f"The zip archive has {members:,} members and a directory of {directory_bytes:,} bytes; at most "
            f"{MAX_MEMBERS:,} members and {_MAX_DIRECTORY_BYTES:,} bytes are read. Pack the images into Parquet shards."
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
