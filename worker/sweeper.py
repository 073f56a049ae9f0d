"""The sweeper: takes back what dead workers hold and clears up after them, and after everyone who was killed.

Safe to run anywhere, twice at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from store.database import Database
from store.objects import ObjectStore
from store.orphans import remove_orphans
from store.work import expire_leases
from worker.process import FOLDER_PREFIX, remove_folder

logger = logging.getLogger(__name__)

# A folder that no living runner of ours uses is left for this long: its runner may be about to be registered.
FOLDER_GRACE_S = 60.0
SIGN_OF_LIFE_EVERY_S = 20.0
# The row of an object follows within moments, or never does.
ORPHAN_AGE_S = 3600.0
ORPHANS_EVERY_S = 900.0


class Sweeper(threading.Thread):
    """Every `sweep_s` seconds: expired leases, then leftover runner folders; a sign of life about every 20 s, and objects
    that nothing refers to now and then.

    ring wakes the slots and renews the leases of running work; sign_of_life tells everyone that this worker is there.
    """

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        scratch: Path,
        folders_in_use: Callable[[], set[Path]],
        ring: Callable[[], None],
        sign_of_life: Callable[[], None],
        *,
        sweep_s: float,
        lease_s: float,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._database = database
        self._objects = objects
        self._scratch = scratch
        self._folders_in_use = folders_in_use
        self._ring = ring
        self._sign_of_life = sign_of_life
        self._sign_at = self._orphans_at = time.monotonic()
        self._sweep_s = sweep_s
        self._longest_pause_s = sweep_s + lease_s / 2
        self._stopping = stopping

    def run(self) -> None:
        looked_at = time.time()
        while not self._stopping.wait(self._sweep_s):
            now = time.time()
            pause_s, looked_at = now - looked_at, now
            if pause_s > self._longest_pause_s:
                # This machine slept, or this process was stopped: our own leases may have run out although their
                # holders are alive. They renew first.
                logger.info("Back after %.0f s; running work renews its leases before the next sweep.", pause_s)
                self._ring()
                continue
            try:
                self._say_that_we_live()
                self.sweep()
            except Exception:
                logger.exception("A sweep failed; the next one is in %g s.", self._sweep_s)

    def _say_that_we_live(self) -> None:
        if time.monotonic() >= self._sign_at:
            self._sign_of_life()
            self._sign_at = time.monotonic() + SIGN_OF_LIFE_EVERY_S

    def sweep(self) -> None:
        expired = expire_leases(self._database)
        if expired:
            logger.warning("Took back %d expired lease(s).", expired)
            self._ring()
        remove_leftovers(self._scratch, self._folders_in_use(), older_than_s=FOLDER_GRACE_S)
        if time.monotonic() >= self._orphans_at:
            self._orphans_at = time.monotonic() + ORPHANS_EVERY_S
            if orphans := remove_orphans(self._database, self._objects, older_than_s=ORPHAN_AGE_S):
                logger.warning("Removed %d stored object(s) that nothing referred to.", orphans)


def remove_leftovers(scratch: Path, in_use: set[Path], *, older_than_s: float) -> None:
    """Delete runner folders that nobody uses."""
    now = time.time()
    for folder in scratch.glob(f"{FOLDER_PREFIX}*"):
        try:
            age_s = now - folder.lstat().st_mtime
        except FileNotFoundError:
            continue
        if folder not in in_use and age_s >= older_than_s:
            remove_folder(folder)
