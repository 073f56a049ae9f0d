"""Digests of files whose parts arrive in any order, taken while they arrive instead of all at the end.

A part is read once it and all before it are there. What is remembered with it is its entity tag, which no other part has
ever: whoever sends a part again gives it another one, so a digest whose tags are still those of the file is the file's.
Every process remembers what came through itself; what it has not seen it reads at the end.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READ_BYTES = 1 << 20
MOST = 200
"""Files that are remembered at a time; of those beyond, the ones that began first are read at the end."""


@dataclass
class _Running:
    """`etags` are those of the parts that have gone into the digest, the first ones of the file."""

    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    etags: list[str] = field(default_factory=list)
    there: dict[int, tuple[str, int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class RunningDigests:
    """Safe to use from several threads. `name` is what a file is remembered by."""

    def __init__(self) -> None:
        self._running: OrderedDict[str, _Running] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, path: Path, number: int, etag: str, size: int) -> None:
        """Part `number` (from 1) is there: read on as far as that leads, unless another thread is reading already."""
        with self._lock:
            running = self._running.setdefault(name, _Running())
            while len(self._running) > MOST:
                self._running.popitem(last=False)
        running.there[number] = (etag, size)
        if running.lock.acquire(blocking=False):
            try:
                while (following := running.there.get(len(running.etags) + 1)) is not None:
                    _read_on(running.digest, path, running.size, following[1])
                    running.etags.append(following[0])
                    running.size += following[1]
            except OSError:
                self.forget(name)  # the file is gone, or cannot be read: whoever needs the digest will say so
            finally:
                running.lock.release()

    def finish(self, name: str, path: Path, etags: Sequence[str], size: int) -> str:
        """The sha256, hex, of the file of `size` bytes whose parts have these entity tags; it is forgotten."""
        running = self.forget(name) or _Running()
        with running.lock:
            if running.etags != list(etags[: len(running.etags)]):
                running = _Running()
            _read_on(running.digest, path, running.size, size - running.size)
            return running.digest.hexdigest()

    def forget(self, name: str) -> _Running | None:
        with self._lock:
            return self._running.pop(name, None)


def _read_on(digest: Any, path: Path, start: int, size: int) -> None:
    """Raises OSError where the file ends before."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size > 0:
            piece = file.read(min(READ_BYTES, size))
            if not piece:
                raise OSError(f"{path.name} ends {size} bytes too soon.")
            digest.update(piece)
            size -= len(piece)
