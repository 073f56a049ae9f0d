"""The sweeper: takes back what dead workers hold, ends what hangs, and rings for what waits.

Safe to run anywhere, twice at once. It asks nothing but the database, so nothing else can hold it up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from store.database import Database
from store.work import end_overdue, expire_leases
from worker.process import FOLDER_PREFIX, remove_folder

logger = logging.getLogger(__name__)

# A folder that no living runner of ours uses is left for this long: its runner may be about to be registered.
FOLDER_GRACE_S = 60.0
SIGN_OF_LIFE_EVERY_S = 20.0
# A doorbell may have been lost together with the queue that held it.
RING_EVERY_S = 15.0


class Sweeper(threading.Thread):
    """Every `sweep_s` seconds: expired leases, work that hangs, leftover runner folders; a ring and a sign of life now and
    then.

    ring wakes the slots and renews the leases of running work; sign_of_life tells everyone that this worker is there.
    scratch: where runner folders lie, None where there are none (beside the API).
    """

    def __init__(
        self,
        database: Database,
        scratch: Path | None,
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
        self._scratch = scratch
        self._folders_in_use = folders_in_use
        self._ring = ring
        self._sign_of_life = sign_of_life
        self._sign_at = time.monotonic()
        self._ring_at = self._sign_at + RING_EVERY_S
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
            except Exception:  # mostly the database's; this thread must live to sweep again
                logger.exception("A sweep failed; the next one is in %g s.", self._sweep_s)

    def _say_that_we_live(self) -> None:
        if time.monotonic() >= self._sign_at:
            self._sign_of_life()
            self._sign_at = time.monotonic() + SIGN_OF_LIFE_EVERY_S

    def sweep(self) -> None:
        expired = expire_leases(self._database)
        if expired:
            logger.warning("Took back %d expired lease(s).", expired)
        if overdue := end_overdue(self._database):
            logger.error("Ended %d piece(s) of work that hung on their worker.", overdue)
        if expired or overdue or time.monotonic() >= self._ring_at:
            self._ring()
            self._ring_at = time.monotonic() + RING_EVERY_S
        if self._scratch is not None:
            remove_leftovers(self._scratch, self._folders_in_use(), older_than_s=FOLDER_GRACE_S)


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
