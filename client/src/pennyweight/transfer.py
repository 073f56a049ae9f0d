"""Files on their way to the service, counted as they are read."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from typing import IO, Any

ByteListener = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""


class ByteCounter:
    """How much of some files has been sent, by whichever thread; what has to be sent again is taken off."""

    def __init__(self, total: int, listener: ByteListener | None) -> None:
        self.total, self.sent, self.listener = total, 0, listener
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.sent += count
            if self.listener is not None:
                self.listener(self.sent, self.total)


class CountedFile:
    """A file whose reads are counted, with what httpx asks of a file: its length and the right to rewind."""

    def __init__(self, file: IO[bytes], counter: ByteCounter) -> None:
        self._file, self._counter = file, counter

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._counter.add(len(data))
        return data

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        before = self._file.tell()
        after = self._file.seek(offset, whence)
        if after < before:  # a request is sent again
            self._counter.add(after - before)
        return after

    def tell(self) -> int:
        return self._file.tell()


def idempotency_key() -> dict[str, str]:
    """The header under which one request may be sent several times and happens once."""
    return {"Idempotency-Key": uuid.uuid4().hex}


def fields_of(**values: Any) -> dict[str, str]:
    """Multipart fields: text as it is, everything else as JSON, those left out dropped."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }
