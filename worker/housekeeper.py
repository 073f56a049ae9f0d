"""Clears up after uploads that nobody finishes and processes that were killed, and forgets what is kept for a while only.

A thread of its own: an object store that hangs must not hold up leases. Safe to run anywhere, twice at once.
"""

from __future__ import annotations

import logging
import threading
import time

from store.checkpoints import drop_checkpoints
from store.database import Database
from store.deliveries import expire_deliveries
from store.errors import StorageUnavailable
from store.idempotency import expire_idempotency_keys
from store.objects import ObjectStore
from store.orphans import remove_orphans
from store.retention import Retention, expire
from store.settings import Settings
from store.uploads import expire_uploads

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
# The row of an object follows within moments, or never does.
ORPHAN_AGE_S = 3600.0
ORPHANS_EVERY_S = 900.0
STALE_EVERY_S = 3600.0
STALE_FACTOR = 2
"""Parts that no upload knows of were left by a killed process; after this many times an upload's life nobody needs them."""


class Housekeeper(threading.Thread):
    """Every minute: what is kept for a while only; now and then: objects and parts in storage that belong to nothing."""

    def __init__(self, settings: Settings, database: Database, objects: ObjectStore, stopping: threading.Event) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self._database = database
        self._objects = objects
        self._retention = Retention(
            artifacts_days=settings.retain_artifacts_days,
            models_days=settings.retain_models_days,
            datasets_days=settings.retain_datasets_days,
            plans_days=settings.retain_plans_days,
        )
        self._stale_s = STALE_FACTOR * settings.upload_expires_s
        self._stale_at = self._orphans_at = time.monotonic()
        self._stopping = stopping

    def run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            try:
                self.sweep()
            except StorageUnavailable as error:
                logger.error("Storage could not be swept: %s", error)
            except Exception:  # mostly the database's; this thread must live to sweep again
                logger.exception("What is out of date could not be swept.")
            wait_s = min(LOOK_EVERY_S, self._stale_s)

    def sweep(self) -> None:
        expire_idempotency_keys(self._database)
        expire_deliveries(self._database)
        if expired := expire_uploads(self._database, self._objects):
            logger.info("Forgot %d upload(s) whose time is over.", expired)
        if dropped := drop_checkpoints(self._database, self._objects):
            logger.info("Deleted the checkpoints of %d job(s) that have ended.", dropped)
        if expired := expire(self._database, self._objects, self._retention):
            logger.info("Deleted %d thing(s) that were kept for as long as they should be.", expired)
        if time.monotonic() >= self._orphans_at:
            self._orphans_at = time.monotonic() + ORPHANS_EVERY_S
            if orphans := remove_orphans(self._database, self._objects, older_than_s=ORPHAN_AGE_S):
                logger.warning("Removed %d stored object(s) that nothing referred to.", orphans)
        if time.monotonic() >= self._stale_at:
            self._stale_at = time.monotonic() + STALE_EVERY_S
            if aborted := self._objects.parts.abort_older_than(self._stale_s):
                logger.warning("Removed the parts of %d upload(s) that nobody knows.", aborted)
