"""Clears up after uploads that nobody finishes, and what is kept for a while only. A thread of its own: an object store that hangs must not hold up leases."""

from __future__ import annotations

import logging
import threading
import time

from store.database import Database
from store.deliveries import expire_deliveries
from store.errors import StorageUnavailable
from store.idempotency import expire_idempotency_keys
from store.objects import ObjectStore
from store.uploads import expire_uploads

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
STALE_EVERY_S = 3600.0
STALE_FACTOR = 2
"""Parts that no upload knows of were left by a killed process; after this many times an upload's life nobody needs them."""


class UploadSweeper(threading.Thread):
    """Every minute: uploads, idempotency keys and webhook messages whose time is over; every hour: parts in the object store that belong to nothing."""

    def __init__(
        self, database: Database, objects: ObjectStore, *, upload_expires_s: float, stopping: threading.Event
    ) -> None:
        super().__init__(name="upload sweeper", daemon=True)
        self._database = database
        self._objects = objects
        self._stale_s = STALE_FACTOR * upload_expires_s
        self._stale_at = time.monotonic()
        self._stopping = stopping

    def run(self) -> None:
        while not self._stopping.wait(min(LOOK_EVERY_S, self._stale_s)):
            try:
                self.sweep()
            except StorageUnavailable as error:
                logger.error("Uploads could not be swept: %s", error)
            except Exception:
                logger.exception("Uploads could not be swept.")

    def sweep(self) -> None:
        expire_idempotency_keys(self._database)
        expire_deliveries(self._database)
        if expired := expire_uploads(self._database, self._objects):
            logger.info("Forgot %d upload(s) whose time is over.", expired)
        if time.monotonic() >= self._stale_at:
            if aborted := self._objects.parts.abort_older_than(self._stale_s):
                logger.warning("Removed the parts of %d upload(s) that nobody knows.", aborted)
            self._stale_at = time.monotonic() + STALE_EVERY_S
