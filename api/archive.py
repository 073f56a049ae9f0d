"""A zip archive as a stream: files stored as they are, one after another, with one piece of one file in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from store.objects import CHUNK_BYTES, ObjectReader

ZIP64_BYTES = zipfile.ZIP64_LIMIT
_LOCAL_HEADER, _DESCRIPTOR, _CENTRAL_HEADER, _END = 30, 16, 46, 22
_FILE_MODE = 0o100644


@dataclass(frozen=True)
class Member:
    """A file of the archive; `open` gives its bytes when its turn comes."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[ObjectReader | io.BytesIO]]


def zip_size(members: Sequence[Member]) -> int | None:
    """How long the stream will be; None where it is so large that its form depends on more than names and sizes."""
    total = _END + sum(
        _LOCAL_HEADER + _DESCRIPTOR + _CENTRAL_HEADER + 2 * len(member.name.encode()) + member.size
        for member in members
    )
    return total if total < ZIP64_BYTES else None


def zip_stream(members: Sequence[Member], modified: datetime) -> Generator[bytes, None, None]:
    """The archive, piece by piece. The same members and date give the same bytes."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            entry = zipfile.ZipInfo(member.name, date_time=modified.timetuple()[:6])
            entry.external_attr = _FILE_MODE << 16
            entry.create_system = 3  # Unix, whose file modes those are
            with (
                member.open() as source,
                archive.open(entry, "w", force_zip64=member.size >= ZIP64_BYTES) as target,
            ):
                while piece := source.read(CHUNK_BYTES):
                    target.write(piece)
                    if held := sink.take():
                        yield held
    yield sink.take()


class _Sink(io.RawIOBase):
    """Where zipfile writes to: holds what was written until somebody takes it. It cannot seek, so sizes come after data."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override] - zipfile writes nothing but bytes
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self._pieces = b"".join(self._pieces), []
        return data
