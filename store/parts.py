"""Objects that arrive in parts: in any order, several at once, some twice, over days, and then become one object.

    begin → write (or a presigned URL, which goes past us) → list → complete
                                                            ↘ abort

A part counts once all of it has arrived. One that is sent again replaces the one before, whoever sent it: a connection
that died without saying so must not keep its successor out.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from store.errors import ObjectMissing, PartsGone, PartsIncomplete
from store.files import move_into_place
from store.running_digests import RunningDigests

HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class PartUpload:
    """An object of `size` bytes on its way to `key`. All parts but the last have `part_size` bytes; numbers start at 1."""

    key: str
    handle: str
    size: int
    part_size: int

    @property
    def part_count(self) -> int:
        return max(1, -(-self.size // self.part_size))

    def size_of(self, number: int) -> int:
        return min(self.part_size, self.size - self.offset_of(number))

    def offset_of(self, number: int) -> int:
        return (number - 1) * self.part_size


@dataclass(frozen=True)
class StoredPart:
    """A part that is there. `etag` has its quotes."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True)
class Assembled:
    """The object that the parts became; `sha256` is hex, of all its bytes as they are stored."""

    size: int
    sha256: str


class PartWriter(Protocol):
    """Writes one part. As a context manager it aborts unless it was committed. More bytes than the part has: ValueError."""

    def write(self, data: bytes) -> None: ...
    def commit(self) -> StoredPart: ...
    def abort(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PartStore(Protocol):
    """Everything raises PartsGone for an upload that was completed, aborted, or never begun."""

    def begin(self, key: str, size: int, part_size: int) -> PartUpload: ...
    def write(self, upload: PartUpload, number: int) -> PartWriter: ...
    def url(self, upload: PartUpload, number: int) -> str | None:
        """Where a client can PUT this part without us, for a while; None where only we can write."""

    def list(self, upload: PartUpload) -> Sequence[StoredPart]: ...
    def complete(self, upload: PartUpload) -> Assembled:
        """Make the object visible under its key, and tell its digest. Completing again gives the same answer.

        Raises PartsIncomplete, changing nothing, unless every part is there with its size.
        """

    def abort(self, upload: PartUpload) -> None:
        """Forget the parts; an upload that is gone is no error, and an object that it became stays."""

    def abort_older_than(self, age_s: float) -> int:
        """Abort what nobody has touched for longer, whoever began it; returns how many."""


def check_complete(upload: PartUpload, parts: Sequence[StoredPart]) -> None:
    """Raises PartsIncomplete unless these are all the parts of the upload, with their sizes."""
    sizes = {part.number: part.size for part in parts}
    missing = [n for n in range(1, upload.part_count + 1) if n not in sizes]
    wrong = [n for n, size in sizes.items() if n > upload.part_count or size != upload.size_of(n)]
    if missing or wrong:
        raise PartsIncomplete(missing, wrong)


class LocalParts:
    """Parts as ranges of one sparse file, which at the end only needs its name.

    Beside the file lies a note for each part: the token of its writer, and its size once it is complete. Under a lock
    that is held for one piece at a time, and shared by who writes, a writer looks whether the note is still its own; so
    the last one wins, and one that hangs holds nothing.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        """`folder` holds the parts; objects get their names under `root`, on the same file system."""
        self._root = root
        self._folder = folder
        self._digests = RunningDigests()
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, key: str, size: int, part_size: int) -> PartUpload:
        upload = PartUpload(key, secrets.token_hex(16), size, part_size)
        folder = self._folder / upload.handle
        folder.mkdir()
        with (folder / "data").open("xb") as file:
            file.truncate(size)
        return upload

    def write(self, upload: PartUpload, number: int) -> LocalPartWriter:
        return LocalPartWriter(upload, self._folder / upload.handle, number, self._digests)

    def url(self, upload: PartUpload, number: int) -> None:
        return None

    def list(self, upload: PartUpload) -> Sequence[StoredPart]:
        folder = self._folder / upload.handle
        with _locked(folder):
            return _complete_parts(upload, folder)

    def complete(self, upload: PartUpload) -> Assembled:
        folder = self._folder / upload.handle
        target = self._root.joinpath(*upload.key.split("/"))
        try:
            with _locked(folder):
                parts = _complete_parts(upload, folder)
                check_complete(upload, parts)
                etags = [part.etag for part in parts]
                sha256 = self._digests.finish(upload.handle, folder / "data", etags, upload.size)
                os.utime(folder / "data")  # the age of an object counts from here
                move_into_place(folder / "data", target, self._root)
        except PartsGone:
            with suppress(ObjectMissing):
                return _of_right_size(upload, target)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return Assembled(upload.size, sha256)

    def abort(self, upload: PartUpload) -> None:
        self._digests.forget(upload.handle)
        self._abort(self._folder / upload.handle)

    def abort_older_than(self, age_s: float) -> int:
        aborted = 0
        for folder in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > age_s:
                    self._abort(folder)
                    aborted += 1
        return aborted

    @staticmethod
    def _abort(folder: Path) -> None:
        # Without its data an upload is gone for every writer, at once.
        with suppress(PartsGone), _locked(folder):
            (folder / "data").unlink()
        shutil.rmtree(folder, ignore_errors=True)


class LocalPartWriter:
    """Writes one part into its range of the file."""

    def __init__(self, upload: PartUpload, folder: Path, number: int, digests: RunningDigests) -> None:
        self._upload = upload
        self._folder = folder
        self._number = number
        self._digests = digests
        self._etag = f'"{secrets.token_hex(16)}"'
        self._size = 0
        with _locked(folder):
            self._file = (folder / "data").open("r+b", buffering=0)
            before = _note(folder, number)
            # What was complete must not look so after a power cut; what was not, does not either way.
            _write_note(folder, number, self._etag, None, durable=before is not None and before["size"] is not None)

    def write(self, data: bytes) -> None:
        if self._size + len(data) > self._upload.size_of(self._number):
            raise ValueError(f"Part {self._number} has {self._upload.size_of(self._number)} bytes, not more.")
        offset = self._upload.offset_of(self._number) + self._size
        with _locked(
            self._folder, shared=True
        ):  # who takes the part over, or completes the upload, waits for this piece
            self._check_still_ours()
            view = memoryview(data)
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written
        self._size += len(data)

    def commit(self) -> StoredPart:
        if self._size != self._upload.size_of(self._number):
            raise ValueError(
                f"Part {self._number} has {self._upload.size_of(self._number)} bytes, {self._size} arrived."
            )
        os.fsync(self._file.fileno())
        with _locked(self._folder):
            self._check_still_ours()
            _write_note(self._folder, self._number, self._etag, self._size, durable=True)
        self._file.close()
        self._digests.add(self._upload.handle, self._folder / "data", self._number, self._etag, self._size)
        return StoredPart(self._number, self._size, self._etag)

    def abort(self) -> None:
        """The part stays incomplete: its note says so since the writer began."""
        self._file.close()

    def _check_still_ours(self) -> None:
        note = _note(self._folder, self._number)
        if note is None or note["etag"] != self._etag:
            raise PartsGone(f"Part {self._number} is being sent again by another request; this one ends here.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


@contextmanager
def _locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Alone with an upload that still has its data, or with others that share. Raises PartsGone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise PartsGone() from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if not (folder / "data").exists():
            raise PartsGone()
        yield
    finally:
        os.close(descriptor)


def _complete_parts(upload: PartUpload, folder: Path) -> list[StoredPart]:
    notes = ((number, _note(folder, number)) for number in range(1, upload.part_count + 1))
    return [StoredPart(n, note["size"], note["etag"]) for n, note in notes if note and note["size"] is not None]


def _note(folder: Path, number: int) -> dict[str, Any] | None:
    """What is known of a part; None for nothing, and for a note that a power cut left half-written."""
    try:
        return json.loads((folder / str(number)).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write_note(folder: Path, number: int, etag: str, size: int | None, *, durable: bool) -> None:
    with (folder / str(number)).open("w") as file:
        json.dump({"etag": etag, "size": size}, file)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _of_right_size(upload: PartUpload, target: Path) -> Assembled:
    """The object that an earlier call made of the parts, if it is there."""
    if not target.is_file() or target.stat().st_size != upload.size:
        raise ObjectMissing(upload.key)
    return _digested(target)


def _digested(path: Path) -> Assembled:
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
            size += len(piece)
    return Assembled(size, digest.hexdigest())
