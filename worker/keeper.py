"""Brings a running job's checkpoints into storage, beside everything else that the attempt does.

The runner says that there is a new file; a thread of its own stores it under a key of this attempt, records it in the
job's row under the attempt's fencing token, and deletes the one before. The runner replaces its file and never writes into
it, so what was opened stays whole; files that come faster than they can be stored are passed over for the latest. What
cannot be stored costs steps and nothing else.

The file comes from a process that may have been taken over. It is copied as bytes, no larger than a runner's files may be
together, and it is given to nobody but the next attempt at the same job, which opens it inside its own confinement.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from store.checkpoints import note_resumed, record_checkpoint
from store.claims import Claim
from store.contract import WorkKind
from store.database import Database
from store.errors import LeaseLost, ObjectMissing, StorageUnavailable
from store.objects import ObjectStore, StoredObject
from worker.outputs import plain_file
from worker.protocol import CHECKPOINT_FILE, RUNNER_READABLE, CheckpointMessage, ProtocolError, ResumedMessage

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
LEAST_GAP_S = 1.0
RETRY_S = 5.0
END_S = 2.0
LOOK_EVERY_S = 0.1


class CheckpointKeeper:
    """For one attempt; only jobs have checkpoints. It is told what the runner says, and stores nothing once it is closed,
    which it is at the end of its block.

    possible: whether the runner can write one when asked. written: how often it said that it did. recorded: how many are
    stored and known to the next attempt.
    """

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        claim: Claim,
        folder: Path,
        *,
        limit_bytes: int,
        interval_s: float,
    ) -> None:
        """limit_bytes: the largest file that is taken. interval_s: how often the runner was told to write one."""
        self._database = database
        self._objects = objects
        self._claim = claim
        self._for_job = claim.kind is WorkKind.job
        self._path = folder / CHECKPOINT_FILE
        self._limit_bytes = limit_bytes
        self._gap_s = min(LEAST_GAP_S, interval_s)
        self._changed = threading.Condition()
        self._wanted = self._storing = self._flushing = self._closed = False
        self._resumed: ResumedMessage | None = None
        self._number = 0
        self._stored: tuple[int, int, int] | None = None
        self._context = contextvars.copy_context()
        self._thread: threading.Thread | None = None
        self.possible = False
        self.written = 0
        self.recorded = 0

    def __enter__(self) -> CheckpointKeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fetch(self) -> None:
        """Put the claim's checkpoint, if there is one, where the runner will look for it."""
        checkpoint = self._claim.checkpoint
        if checkpoint is None:
            return
        try:
            self._objects.fetch(checkpoint.object_key, self._path, checkpoint.sha256)
            self._path.chmod(RUNNER_READABLE)
        except (ObjectMissing, StorageUnavailable) as error:
            self._path.unlink(missing_ok=True)
            logger.warning("%s begins anew, since its checkpoint cannot be fetched: %s", self._claim.id, error)
        else:
            # Until the runner has replaced it, there is nothing new to store.
            self._stored = _identity(self._path.stat())

    def hear(self, message: CheckpointMessage | ResumedMessage) -> None:
        """Take in what the runner says, at once: the work is done beside it."""
        if not self._for_job:
            return
        with self._changed:
            if isinstance(message, ResumedMessage):
                if self._resumed is None:
                    self._resumed = message
                    self._wake()
            elif message.state == "possible":
                self.possible = True
            else:
                self.written += 1
                self._wanted = True
                self._wake()

    def flush(self, timeout_s: float, keep_waiting: Callable[[], bool] = lambda: True) -> None:
        """Store what the runner, which has ended, wrote last, waiting no longer than this (or while `keep_waiting`)."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if self._closed or not self._for_job or not self._path.exists():
                return
            self._wanted = self._flushing = True
            self._wake()
            while (
                (self._wanted or self._storing) and not self._closed and time.monotonic() < deadline and keep_waiting()
            ):
                self._changed.wait(LOOK_EVERY_S)

    def close(self) -> None:
        """Store nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            # One that hangs in storage is fenced by the attempt's last write.
            self._thread.join(END_S)

    def _wake(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(
                target=lambda: self._context.run(self._run), name=f"checkpoint-{self._claim.id}", daemon=True
            )
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        not_before = 0.0
        announced = False
        while True:
            with self._changed:
                while not self._closed and not self._due(not_before, announced):
                    waits = self._wanted or (self._resumed is not None and not announced)
                    self._changed.wait(max(0.01, not_before - time.monotonic()) if waits else None)
                if self._closed:
                    return
                self._storing, self._wanted = self._wanted, False
            try:
                if self._resumed is not None and not announced:
                    note_resumed(self._database, self._claim, step=self._resumed.step, number=self._resumed.number)
                    announced = True
                if self._storing:
                    self._store()
                not_before = time.monotonic() + self._gap_s
            except LeaseLost:
                self._closed = True
            except ProtocolError as error:
                logger.error("The checkpoint of %s is not taken: %s", self._claim.id, error)
            except Exception:  # of the database or the store: the work goes on, and so do the attempts to store
                logger.warning("A checkpoint of %s could not be stored.", self._claim.id, exc_info=True)
                with self._changed:
                    self._wanted = self._wanted or (self._storing and not self._flushing)
                not_before = time.monotonic() + RETRY_S
            finally:
                with self._changed:
                    self._storing = False
                    self._changed.notify_all()

    def _due(self, not_before: float, announced: bool) -> bool:
        if self._wanted and (self._flushing or time.monotonic() >= not_before):
            return True
        return self._resumed is not None and not announced and time.monotonic() >= not_before

    def _store(self) -> None:
        """Store the file as it is now, unless that was done, and record it."""
        with plain_file(self._path) as source:
            state = os.fstat(source)
            if _identity(state) == self._stored:
                return
            self._number += 1
            key = self._claim.checkpoint_key(self._number)
            stored = self._copy(source, key)
        if stored is None:
            return
        try:
            before = record_checkpoint(self._database, self._claim, stored)
        except LeaseLost:
            self._objects.delete(key)
            raise
        self._stored = _identity(state)
        self.recorded += 1
        if before is not None:
            self._objects.delete(before)

    def _copy(self, source: int, key: str) -> StoredObject | None:
        """None if this attempt ends meanwhile. Raises ProtocolError for a file that is too large."""
        size = 0
        with self._objects.open_writer(key) as writer:
            while chunk := os.read(source, CHUNK_BYTES):
                size += len(chunk)
                if size > self._limit_bytes:
                    raise ProtocolError(f"It is larger than the {self._limit_bytes} bytes that a task may write.")
                if self._closed:
                    return None
                writer.write(chunk)
            return writer.commit()


def _identity(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_ino, state.st_mtime_ns, state.st_size
