"""A slot does one piece of work after another: it claims, gives the work to a runner, and keeps the next runner ready.

A slot keeps one runner ready, so that work starts at once instead of after the seconds that importing the engine takes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from store.catalogue import CatalogueRepository
from store.contract import Catalogue, WorkKind
from store.work import claim, release_owner
from worker.attempt import Attempt, Services
from worker.probe import Confinement
from worker.process import RunnerProcess, RunnerSpec
from worker.protocol import ErrorMessage, ProtocolError, ResultMessage, Task

logger = logging.getLogger(__name__)

CATALOGUE_TIMEOUT_S = 120.0
CATALOGUE_RETRY_S = 60.0
BACKOFF_S = (1.0, 2.0, 5.0, 15.0, 30.0)


@dataclass(frozen=True)
class SlotSpec:
    """One slot: what it claims, and how its runners are made.

    keeps_ready: whether a runner waits for the next task; replaces_early: whether its successor gets ready while it
    works (short tasks come in twos, a model and its dataset), not when it is done.
    catalogue: the runner to ask what this worker can do, for the slot that publishes it before it claims anything.
    gpus: how many a job has to itself here.
    succeeds: whether whatever is leased under worker_id belongs to a dead predecessor, and is taken back at once.
    """

    name: str
    worker_id: str
    kinds: Collection[WorkKind]
    queues: Collection[str]
    runners: RunnerSpec
    keeps_ready: bool
    replaces_early: bool = False
    catalogue: RunnerSpec | None = None
    succeeds: bool = False
    gpus: int = 0


class Slot(threading.Thread):
    """Does one piece of work after another. Nothing that goes wrong with one ends the slot."""

    def __init__(
        self,
        spec: SlotSpec,
        services: Services,
        poll_s: float,
        confinement: Confinement,
        worked: Callable[[], None] = lambda: None,
    ) -> None:
        """poll_s: how often it looks for work by itself. worked: called after each piece of work, which may have made
        other work claimable."""
        super().__init__(name=f"slot {spec.name}", daemon=True)
        self._spec = spec
        self._services = services
        self._poll_s = poll_s
        self._confinement = confinement
        self._worked = worked
        self._succeeds = spec.succeeds
        self._bell = threading.Event()
        self._idle = threading.Condition()
        self._looks_begun = 0
        self._looks_ended = 0
        self._ready: RunnerProcess | None = None
        self._used: RunnerProcess | None = None
        self._attempt: Attempt | None = None
        self._publish_at = time.monotonic() if spec.catalogue else float("inf")

    @property
    def worker_id(self) -> str:
        return self._spec.worker_id

    def ring(self) -> None:
        self._bell.set()
        if (attempt := self._attempt) is not None:
            attempt.nudge()

    def answer(self) -> None:
        """Look for work now, do what there is, and return when nothing is left for this slot, or when it stops."""
        with self._idle:
            wanted = self._looks_begun + 1
        self.ring()
        with self._idle:
            self._idle.wait_for(lambda: self._looks_ended >= wanted or self._services.stopping.is_set())

    def folders(self) -> set[Path]:
        return {runner.folder for runner in (self._ready, self._used) if runner is not None}

    def run(self) -> None:
        failures = 0
        while not self._services.stopping.is_set():
            self._bell.clear()
            self._looks_begun += 1
            try:
                if self._succeeds:
                    self._take_back()
                if time.monotonic() >= self._publish_at:
                    self._keep_one_ready()
                    self._publish_catalogue()
                if self._work_once():
                    self._worked()
                else:
                    self._keep_one_ready()
                    self._tell_idle()
                    self._bell.wait(self._poll_s)
                failures = 0
            except Exception:  # trouble of this machine's own: the work is given back, and the slot must live on
                delay_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                logger.exception("The slot for %s had trouble; it goes on in %g s.", self._spec.name, delay_s)
                failures += 1
                self._services.stopping.wait(delay_s)
        if self._ready is not None:
            self._ready.discard()
        self._tell_idle()

    def _tell_idle(self) -> None:
        with self._idle:
            self._looks_ended = self._looks_begun
            self._idle.notify_all()

    def _take_back(self) -> None:
        if taken_back := release_owner(self._services.database, self._spec.worker_id):
            logger.warning("Took back %d piece(s) of work that this slot's last process held.", taken_back)
        self._succeeds = False

    def _work_once(self) -> bool:
        """Claim and do one piece of work; whether there was one."""
        found = claim(
            self._services.database,
            worker_id=self._spec.worker_id,
            kinds=self._spec.kinds,
            queues=self._spec.queues,
            lease_s=self._services.timing.lease_s,
            gpus=self._spec.gpus,
        )
        if found is None:
            return False
        logger.info("Attempt %d of %s (%s).", found.attempt, found.id, found.kind.value)
        self._attempt = Attempt(self._services, found, self._take_runner)
        try:
            self._attempt.run()
        finally:
            self._attempt = self._used = None
        return True

    def _take_runner(self) -> RunnerProcess:
        runner, self._ready = self._ready, None
        if runner is not None and not runner.alive:
            runner.discard()
            runner = None
        self._used = runner or RunnerProcess(self._spec.runners)
        if self._spec.replaces_early:
            # If this fails, so does the next attempt to keep one ready, and says so; the task in hand goes on.
            with contextlib.suppress(OSError):
                self._keep_one_ready()
        return self._used

    def _keep_one_ready(self) -> None:
        if not self._spec.keeps_ready:
            return
        if self._ready is not None and not self._ready.alive:
            runner, self._ready = self._ready, None
            runner.discard()
            raise RuntimeError("A waiting runner ended: " + " | ".join(runner.log_tail()[-3:]))
        if self._ready is None:
            self._ready = RunnerProcess(self._spec.runners)

    def _publish_catalogue(self) -> None:
        """Ask a runner what this worker can do, and tell everyone through the database; later again if it fails."""
        self._publish_at = time.monotonic() + CATALOGUE_RETRY_S
        if (catalogue := self._ask_for_catalogue()) is None:
            return
        sandbox = {"sandbox_level": self._confinement.level, "sandbox_kind": self._confinement.kind}
        with self._services.database.transaction() as session:
            CatalogueRepository(session).publish(self._spec.worker_id, catalogue.model_copy(update=sandbox))
        self._publish_at = float("inf")

    def _ask_for_catalogue(self) -> Catalogue | None:
        deadline = time.monotonic() + CATALOGUE_TIMEOUT_S
        with RunnerProcess(self._spec.catalogue) as runner:
            self._used = runner
            runner.start(Task(kind="catalogue", threads=1, cpu_seconds=int(CATALOGUE_TIMEOUT_S)))
            try:
                while runner.talking and time.monotonic() < deadline and not self._services.stopping.is_set():
                    for message in runner.read(timeout_s=0.2):
                        if isinstance(message, ResultMessage):
                            return Catalogue.model_validate(message.result)
                        if isinstance(message, ErrorMessage):
                            logger.error("No catalogue: %s", message.error.message)
            except (ProtocolError, ValidationError) as error:
                logger.error("No catalogue: %s", error)
            finally:
                self._used = None
            if not self._services.stopping.is_set():
                logger.error("The runner gave no catalogue:\n%s", "\n".join(runner.log_tail()))
        return None
