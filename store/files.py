"""Giving a finished file its name, so that it is there completely, for good, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

RENAME_ATTEMPTS = 100


def move_into_place(path: Path, target: Path, root: Path) -> None:
    """Name a file whose bytes are on the disk `target`, replacing one that is there; afterwards it survives a power cut."""
    for patience in range(RENAME_ATTEMPTS, 0, -1):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            break
        except (FileNotFoundError, FileExistsError):
            # A delete may remove a folder that is empty at this moment; anything else stays wrong.
            if patience == 1:
                raise
    for folder in (target.parent, *target.parent.parents):
        sync_folder(folder)
        if folder == root:
            break


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(descriptor: int, start: int, size: int) -> None:
    """Send a range of a file on its way to the disk without waiting for it, where the system can."""
    if hasattr(os, "posix_fadvise"):
        # Linux begins to write what it is told is not needed; it cannot forget it before, and it is read again from there.
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)
