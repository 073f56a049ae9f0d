"""The data folder of one server: at most one server holds it, and it remembers who it is."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from types import TracebackType

LOCK_FILE = "server.lock"
# Others may pass through to a runner's folder, whose name they cannot know; everything else in here is private.
PASSABLE = 0o711
PRIVATE_UMASK = 0o077


def prepare(path: Path) -> None:
    """Create the folder if it is not there, and keep everything that this process writes from now on private."""
    os.umask(PRIVATE_UMASK)
    if not path.exists():
        path.mkdir(parents=True)
        path.chmod(PASSABLE)


def remembered_owner(path: Path) -> str | None:
    """The `owner` of the servers that run on this folder; None before the first."""
    try:
        name = (path / LOCK_FILE).read_text().strip()
    except FileNotFoundError:
        return None
    return f"{name}/" if name else None


class DataFolderInUse(Exception):
    """Another server has this folder."""


class DataFolder:
    """Exclusive use of a data folder for as long as the process lives, however it ends.

    `owner` is the same for every server that ever runs on this folder: with the lock in hand, whatever is leased under
    that name belongs to a dead predecessor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = ""
        self._descriptor = -1

    def __enter__(self) -> DataFolder:
        """Create the folder if need be and lock it. Raises DataFolderInUse, OSError."""
        prepare(self.path)
        self._descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise DataFolderInUse(
                f"Another pennyweightd serves the data folder {self.path}. Stop it, or choose another folder with --data-dir."
            ) from None
        self.owner = self._remembered_owner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _remembered_owner(self) -> str:
        """The trailing slash keeps one folder's name from being another's prefix."""
        if not (name := os.pread(self._descriptor, 64, 0).decode(errors="replace").strip()):
            name = f"embedded-{secrets.token_hex(8)}"
            os.pwrite(self._descriptor, name.encode(), 0)
            os.fsync(self._descriptor)
        return f"{name}/"
