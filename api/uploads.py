"""Uploads: file parts go straight to the object store, piece by piece, digested on the way; memory stays flat.

Nothing is kept unless the whole request succeeds: an error or a broken connection leaves no object behind. So does a
crash, but for one moment: a process killed between the commit of an object and that of its row leaves an object that
nothing refers to, until a sweeper removes it (`store.orphans`).
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.behind import Behind
from api.multipart import PartEnd, PartStart, parts_of
from api.problems import Problem, escape
from api.validation import FieldParser
from store.objects import ObjectStore, ObjectWriter, StoredObject

WRITE_BYTES = 1 << 20
"""File data is collected to this size before a worker thread digests and writes it, while the next is collected."""

MAX_FIELD_BYTES = 1 << 20
"""A `spec` can name the width of every layer of a large network."""
_FRAMING_BYTES = 1 << 20
"""What fields, headers and boundaries can add to the files of a request."""

_MAX_FILENAME = 255

_FOREIGN_FORMATS = {
    b"\x89HDF\r\n\x1a\n": "a Keras/HDF5 file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x1f\x8b": "a gzip file",
}
"""First bytes of files that are certainly no model that a worker could read."""


@dataclass(frozen=True)
class FileRule:
    """A part that holds a file: where it goes, and whether it must be there."""

    object_key: str
    required: bool = True
    is_model: bool = False


@dataclass
class ReceivedFile:
    """A file that has arrived completely and is not yet visible in the object store."""

    part: str
    filename: str
    _objects: ObjectStore
    _writer: ObjectWriter
    size_bytes: int = 0
    head: bytes = b""
    _stored: StoredObject | None = None
    # A cancelled request may discard the file while a thread is still writing to it.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, data: bytes) -> None:
        with self._lock:
            self._writer.write(data)

    def commit(self) -> StoredObject:
        """Make the object visible; blocks until it is on the disk."""
        with self._lock:
            self._stored = self._writer.commit()
            return self._stored

    @property
    def sha256(self) -> str | None:
        """The digest of the committed file."""
        return None if self._stored is None else self._stored.sha256

    def discard(self) -> None:
        with self._lock:
            self._writer.abort()
            if self._stored is not None:
                self._objects.delete(self._stored.key)


@dataclass
class Form:
    """A received multipart form: parsed fields by name (those that were sent), and files by name."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, ReceivedFile] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def contents(self) -> list[Any]:
        """What was sent, as JSON: the fields as they were spelt, and name and digest of each file, all committed."""
        return [self.texts, {part: [file.filename, file.sha256] for part, file in self.files.items()}]

    def discard(self) -> None:
        for file in self.files.values():
            file.discard()


@asynccontextmanager
async def received_form(
    request: Request,
    objects: ObjectStore,
    *,
    fields: Mapping[str, FieldParser],
    files: Mapping[str, FileRule],
    max_file_bytes: int,
) -> AsyncIterator[Form]:
    """Receive the form; commit its files inside the block. When the block raises, nothing of it remains.

    Fields are checked as they arrive, so that a mistake in one that is sent before a large file costs nothing.
    """
    form = Form()
    try:
        _check_announced_size(request, len(files) * max_file_bytes, max_file_bytes)
        await _Receiver(form, objects, fields, files, max_file_bytes).receive(request)
        yield form
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(form.discard)
        raise


class _Receiver:
    """Sorts the parts of one request into a form."""

    def __init__(
        self,
        form: Form,
        objects: ObjectStore,
        fields: Mapping[str, FieldParser],
        files: Mapping[str, FileRule],
        max_file_bytes: int,
    ) -> None:
        self._form = form
        self._objects = objects
        self._fields = fields
        self._files = files
        self._max_file_bytes = max_file_bytes
        self._part = ""
        self._file: ReceivedFile | None = None
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    async def receive(self, request: Request) -> None:
        async with Behind() as behind:
            async for event in parts_of(request):
                match event:
                    case PartStart():
                        await self._begin(event)
                    case PartEnd():
                        await self._end(behind)
                    case piece:
                        await self._add(piece, behind)
        missing = [name for name, rule in self._files.items() if rule.required and name not in self._form.files]
        if missing:
            raise Problem.at(f"/{missing[0]}", "required", f"The file part {missing[0]!r} is missing.")

    async def _begin(self, start: PartStart) -> None:
        name = self._part = start.name
        pointer = f"/{escape(name[:100])}"
        if name in self._form.fields or name in self._form.files:
            raise Problem.at(pointer, "duplicate", f"The part {name[:100]!r} is given twice.")
        if name in self._files:
            rule = self._files[name]
            writer = await run_in_threadpool(self._objects.open_writer, rule.object_key)
            self._file = ReceivedFile(name, display_name(start.filename), self._objects, writer)
            self._form.files[name] = self._file
        elif name not in self._fields:
            known = ", ".join([*self._files, *self._fields])
            raise Problem.at(pointer, "unknown_field", f"Unknown part {name[:100]!r}. Known: {known}.")

    async def _add(self, piece: bytes, behind: Behind) -> None:
        self._pieces.append(piece)
        self._held_bytes += len(piece)
        if self._file is None:
            if self._held_bytes > MAX_FIELD_BYTES:
                raise Problem.at(
                    f"/{self._part}",
                    "too_large",
                    f"The field {self._part!r} is larger than {MAX_FIELD_BYTES} bytes.",
                    code="too_large",
                )
            return
        if len(self._file.head) < 16:
            self._file.head = (self._file.head + piece)[:16]
        self._file.size_bytes += len(piece)
        if self._file.size_bytes > self._max_file_bytes:
            raise over_limit(self._max_file_bytes, self._part)
        if self._held_bytes >= WRITE_BYTES:
            await behind.call(self._file.write, self._held())

    async def _end(self, behind: Behind) -> None:
        if self._file is None:
            text = self._form.texts[self._part] = self._field_text()
            self._form.fields[self._part] = self._fields[self._part](text)
            return
        await behind.call(self._file.write, self._held())
        await behind.done()
        file, rule = self._file, self._files[self._part]
        check_head(file.filename, file.size_bytes, file.head, f"/{file.part}", is_model=rule.is_model)
        self._file = None

    def _held(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces, self._held_bytes = [], 0
        return data

    def _field_text(self) -> str:
        try:
            text = self._held().decode()
        except UnicodeDecodeError as error:
            raise Problem.at(f"/{self._part}", "not_utf8", f"The field {self._part!r} is not UTF-8 text.") from error
        if "\0" in text:
            raise Problem.at(f"/{self._part}", "invalid", f"The field {self._part!r} contains a NUL character.")
        return text


def over_limit(max_file_bytes: int, part: str | None = None, *, announced: bool = False) -> Problem:
    """The 413 that names the limit, exactly and in words. `part` is the form's, or the field that announced the file."""
    what = "The upload" if part is None else "The announced file" if announced else f"The file in the part {part!r}"
    detail = (
        f"{what} is larger than the limit of {max_file_bytes} bytes ({in_words(max_file_bytes)}). "
        "PENNYWEIGHT_MAX_UPLOAD_BYTES raises it."
    )
    return (
        Problem("too_large", detail) if part is None else Problem.at(f"/{part}", "too_large", detail, code="too_large")
    )


def in_words(size_bytes: int) -> str:
    """A size for people, for example `4 GiB` or `1.5 MiB`."""
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"


def _check_announced_size(request: Request, all_files_bytes: int, max_file_bytes: int) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > all_files_bytes + _FRAMING_BYTES:
        raise over_limit(max_file_bytes)


def check_head(filename: str, size_bytes: int, head: bytes, pointer: str, *, is_model: bool) -> None:
    """The API looks at size and first bytes only; what is in a file is the sandboxed worker's business."""
    if size_bytes == 0:
        raise Problem.at(pointer, "empty_file", f"The file {filename!r} is empty.", code="empty_file")
    foreign = next((title for magic, title in _FOREIGN_FORMATS.items() if head.startswith(magic)), None)
    if is_model and foreign is not None:
        raise Problem.at(
            pointer,
            "unsupported_format",
            f"{filename!r} is {foreign}. Send a PyTorch state_dict (.safetensors, .pt, .pth, .th) with its "
            "architecture, or an .onnx or .pt2 file.",
            code="unsupported_format",
        )


def display_name(filename: str | None) -> str:
    """A client's file name as something to show: no folders, nothing unprintable. It never names a file of ours."""
    last = (filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable())[:_MAX_FILENAME].strip() or "upload"
