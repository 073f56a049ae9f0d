"""The right to work on one claim, kept alive in the background, and the last write made with it.

A thread of its own renews the lease whatever the attempt is doing (fetching gigabytes, reading a quiet runner), carries
progress along, and notices a cancel. When the database says that the lease is gone, or has not answered for as long as
the lease lives, the attempt is fenced: it stops at once and writes nothing more.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from store.claims import Claim
from store.contract import JobProgress, TrainingEpoch
from store.database import Database
from store.errors import LeaseLost
from store.work import heartbeat

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
# The doorbell may ring for every request; the database need not hear of each.
URGENT_EVERY_S = 0.1
# What one write tells at most.
MAX_EPOCHS_PER_WRITE = 64
RETRY_S = 1.0
# Give up a little before the lease ends in the database: the clock there started before our last write returned.
SAFETY_SHARE = 0.8


@dataclass(frozen=True)
class Timing:
    """How long a claim lives without a heartbeat, and how often it gets one."""

    lease_s: float
    heartbeat_s: float


class Lease:
    """Used as a context manager around one attempt."""

    def __init__(self, database: Database, claim: Claim, timing: Timing) -> None:
        self.claim = claim
        self._database = database
        self._timing = timing
        self._changed = threading.Condition()
        self._progress: JobProgress | None = None
        # Stages and the epochs that ended in them, in order; a runner's number of both is bounded.
        self._news: deque[str | TrainingEpoch] = deque()
        self._urgent = True
        self._closed = False
        self._lost = False
        self._cancel_requested = False
        self._last_beat = self._last_success = time.monotonic()
        self._context: contextvars.Context
        self._thread = threading.Thread(
            target=lambda: self._context.run(self._run), name=f"lease-{claim.id}", daemon=True
        )

    def __enter__(self) -> Lease:
        self._context = contextvars.copy_context()  # what the thread logs is about the same work
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def lost(self) -> bool:
        return self._lost

    @property
    def cancel_requested(self) -> bool:
        return self._cancel_requested

    def report(self, progress: JobProgress, stage: str | None = None) -> None:
        """Have progress saved: at once with a new `stage`, otherwise about once a second."""
        with self._changed:
            self._progress = progress
            if stage is not None:
                self._news.append(stage)
                self._urgent = True
            self._changed.notify()

    def tell_epoch(self, epoch: TrainingEpoch) -> None:
        """Have the end of an epoch written down, with the next progress; none is left out."""
        with self._changed:
            self._news.append(epoch)
            self._changed.notify()

    def nudge(self) -> None:
        """Ask the database now whether anything has changed."""
        with self._changed:
            self._urgent = True
            self._changed.notify()

    def settle(self, write: Callable[[], object]) -> bool:
        """Make the last write of this attempt, again if the database does not answer; whether it was made.

        False: the lease was lost, so nothing was written and whoever holds it now decides.
        """
        self._close()
        while not self._lost:
            try:
                self._beat()
                write()
                return True
            except LeaseLost:
                self._lost = True
            except Exception:  # mostly the database's, which may come back while the lease runs
                if self._expired():
                    logger.exception("Giving up the last write of attempt %d of %s.", self.claim.attempt, self.claim.id)
                    self._lost = True
                else:
                    logger.warning("The last write for %s failed; trying again.", self.claim.id, exc_info=True)
                    time.sleep(RETRY_S)
        return False

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (wait_s := self._wait_s()) > 0:
                    self._changed.wait(wait_s)
                if self._closed:
                    return
                self._urgent = False
            try:
                self._beat()
            except LeaseLost:
                self._lost = True
                return
            except Exception:  # mostly the database's, which may come back while the lease runs
                logger.warning("A heartbeat for %s failed.", self.claim.id, exc_info=True)
                if self._expired():
                    self._lost = True
                    return

    def _beat(self) -> None:
        """Renew the lease and save what was reported, one write per stage with its epochs; what cannot be saved stays reported."""
        while True:
            self._last_beat = time.monotonic()
            with self._changed:
                progress = self._progress
                stage, epochs = self._next_news()
            answer = heartbeat(
                self._database, self.claim, self._timing.lease_s, progress=progress, stage=stage, epochs=epochs
            )
            self._last_success = self._last_beat
            self._cancel_requested = self._cancel_requested or answer.cancel_requested
            with self._changed:
                if self._progress is progress:
                    self._progress = None
                for _ in range((stage is not None) + len(epochs)):
                    self._news.popleft()
                if not self._news:
                    return

    def _next_news(self) -> tuple[str | None, list[TrainingEpoch]]:
        """The stage that is next to be told, if one is, and the epochs that follow it."""
        news = iter(itertools.islice(self._news, MAX_EPOCHS_PER_WRITE))
        first = next(news, None)
        stage = first if isinstance(first, str) else None
        rest = news if stage is not None else itertools.chain([first] if first is not None else [], news)
        return stage, list(itertools.takewhile(lambda one: not isinstance(one, str), rest))

    def _wait_s(self) -> float:
        """Seconds until the next heartbeat is due."""
        if self._urgent:
            return self._last_beat + URGENT_EVERY_S - time.monotonic()
        failing = self._last_success < self._last_beat
        every = RETRY_S if failing else PROGRESS_EVERY_S if self._progress or self._news else self._timing.heartbeat_s
        return self._last_beat + min(every, self._timing.heartbeat_s) - time.monotonic()

    def _expired(self) -> bool:
        return time.monotonic() - self._last_success > self._timing.lease_s * SAFETY_SHARE

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
