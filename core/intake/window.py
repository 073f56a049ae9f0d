"""A bounded, read-only file over a stretch of memory, for parsers that trust the lengths that they read."""

from __future__ import annotations

import io

from core.intake.refusals import too_large


class Window:
    """`read`, `readline`, `seek` and `tell` over `view`; one read gives at most `max_read_bytes`.

    A longer line comes back cut, without its newline, which parsers report as malformed; a longer read is refused.
    """

    def __init__(self, view: memoryview, *, max_read_bytes: int, max_line_bytes: int = 4096, what: str) -> None:
        self._view = view
        self._position = 0
        self._max_read_bytes = max_read_bytes
        self._max_line_bytes = max_line_bytes
        self._what = what

    def read(self, count: int = -1) -> bytes:
        available = max(0, len(self._view) - self._position)
        count = available if count is None or count < 0 else min(count, available)
        if count > self._max_read_bytes:
            raise too_large(f"{self._what} is larger than {self._max_read_bytes >> 20} MiB.")
        data = bytes(self._view[self._position : self._position + count])
        self._position += count
        return data

    def readline(self) -> bytes:
        line = bytes(self._view[self._position : self._position + self._max_line_bytes])
        line = line[: line.find(b"\n") + 1] or line
        self._position += len(line)
        return line

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        if base + offset < 0:
            raise OSError("seek before the start of the file")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position
