"""The embedded worker: claims work, gives it to runners, keeps the leases, sweeps.

Three threads beside the API: one slot for jobs, one for short work (so that an inspection never waits behind a
two-hour job), and the sweeper. torch is imported in none of them. A slot keeps one runner ready, so that work starts
at once instead of after the seconds that importing the engine takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from store.catalogue import CatalogueRepository
from store.contract import SHORT_WORK, Catalogue, WorkKind
from store.database import Database
from store.objects import ObjectStore
from store.settings import Settings
from store.work import claim
from worker.attempt import Attempt, Services
from worker.lease import Timing
from worker.probe import Confinement, choose_confinement
from worker.process import DEFAULT_COMMANDS, RunnerProcess, RunnerSpec
from worker.protocol import ErrorMessage, ProtocolError, ResultMessage, Task
from worker.sandbox import FILE_BYTES
from worker.sweeper import Sweeper, remove_leftovers
from worker.upload_sweeper import UploadSweeper
from worker.view import gpu_devices

logger = logging.getLogger(__name__)

SCRATCH_FOLDER = "scratch"
# Others may pass through on the way to a folder whose name they know, and list nothing.
PASSABLE = 0o711
CATALOGUE_TIMEOUT_S = 120.0
CATALOGUE_RETRY_S = 60.0
BACKOFF_S = (1.0, 2.0, 5.0, 15.0, 30.0)
# A runner that waits holds 0.3 GiB of imported engine; small machines have better uses for it.
LEAST_MEMORY_FOR_READY_RUNNERS = 6 * 2**30


@dataclass(frozen=True)
class SlotSpec:
    """One slot: what it claims, and how its runners are made.

    keeps_ready: whether a runner waits for the next task; replaces_early: whether its successor gets ready while it
    works (short tasks come in twos, a model and its dataset), not when it is done.
    catalogue: the runner to ask what this worker can do, for the slot that publishes it before it claims anything.
    """

    name: str
    worker_id: str
    kinds: Collection[WorkKind]
    queues: Collection[str]
    runners: RunnerSpec
    keeps_ready: bool
    replaces_early: bool = False
    catalogue: RunnerSpec | None = None


class Supervisor:
    """Start it once, stop it once; `wake` tells it that there may be something to do."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        objects: ObjectStore,
        *,
        owner: str | None = None,
        commands: str = DEFAULT_COMMANDS,
    ) -> None:
        """owner: begins the worker ids under which leases are held. commands: the runners' command table."""
        self._settings = settings
        self._database = database
        self._objects = objects
        self._owner = owner or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}/"
        self._commands = commands
        self._stopping = threading.Event()
        self._scratch = settings.data_dir / SCRATCH_FOLDER
        self._slots: list[Slot] = []
        self._sweeper: Sweeper | None = None
        self._upload_sweeper: UploadSweeper | None = None
        self.confinement: Confinement | None = None

    def start(self) -> None:
        """Find out how runners can be confined here, and begin to work. Raises NoSandbox if no runner starts."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._scratch.chmod(PASSABLE)
        remove_leftovers(self._scratch, set(), older_than_s=0)
        limit = self._settings.max_scratch_bytes
        # A decoded dataset is one file; below FILE_BYTES the folder as a whole is what is measured.
        file_bytes = max(FILE_BYTES, limit)
        self.confinement = choose_confinement(self._scratch, (str(self._settings.data_dir),), file_bytes)
        timing = Timing(lease_s=self._settings.lease_s, heartbeat_s=self._settings.heartbeat_s)
        services = Services(self._database, self._objects, timing, self._stopping, scratch_bytes=limit)
        self._slots = [Slot(spec, services, self._settings.poll_s, self.confinement) for spec in self._slot_specs()]
        self._sweeper = Sweeper(
            self._database,
            self._objects,
            self._scratch,
            self._folders_in_use,
            self.wake,
            self._sign_of_life,
            sweep_s=self._settings.sweep_s,
            lease_s=self._settings.lease_s,
            stopping=self._stopping,
        )
        self._upload_sweeper = UploadSweeper(
            self._database,
            self._objects,
            upload_expires_s=self._settings.upload_expires_s,
            stopping=self._stopping,
        )
        for thread in (*self._slots, self._sweeper, self._upload_sweeper):
            thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Planned stop: end the runners, give their work back without counting a loss, and wait for the threads."""
        deadline = time.monotonic() + (self._settings.stop_timeout_s if timeout_s is None else timeout_s)
        self.begin_stop()
        for thread in (*self._slots, *filter(None, [self._sweeper, self._upload_sweeper])):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.error("%s did not stop in time; its lease will expire.", thread.name)

    def begin_stop(self) -> None:
        """The first half of `stop`, which takes no time: runners end while the API still answers its last requests."""
        self._stopping.set()
        self.wake()

    def wake(self) -> None:
        """The doorbell: there may be new work, or a cancel for running work."""
        for slot in self._slots:
            slot.ring()

    def _slot_specs(self) -> list[SlotSpec]:
        queues = {"cpu", "gpu"} if gpu_devices() else {"cpu"}
        confinement = self.confinement
        keeps_ready = confinement.policy.memory_bytes >= LEAST_MEMORY_FOR_READY_RUNNERS

        def runners(index: int, threads: int, gpu: bool) -> RunnerSpec:
            policy = dataclasses.replace(confinement.for_slot(index), gpu=gpu and confinement.policy.gpu)
            return RunnerSpec(policy, self._scratch, threads, self._commands)

        return [
            SlotSpec(
                name="short work",
                worker_id=f"{self._owner}short",
                kinds=SHORT_WORK,
                queues=queues,
                runners=runners(0, threads=1, gpu=False),
                keeps_ready=keeps_ready,
                replaces_early=True,
                catalogue=runners(0, threads=1, gpu=True),
            ),
            SlotSpec(
                name="jobs",
                worker_id=f"{self._owner}job",
                kinds={WorkKind.job},
                queues=queues,
                runners=runners(1, threads=available_cores(), gpu=True),
                keeps_ready=keeps_ready,
            ),
        ]

    def _sign_of_life(self) -> None:
        """Keep this worker's catalogue rows fresh. Not the slots' own doing: one may be busy for hours."""
        with self._database.transaction() as session:
            for slot in self._slots:
                if slot.is_alive():
                    CatalogueRepository(session).seen(slot.worker_id)

    def _folders_in_use(self) -> set[Path]:
        return {folder for slot in self._slots for folder in slot.folders()}


def available_cores() -> int:
    """The cores that this process may use; OMP_NUM_THREADS, where it is set, says fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) > 0 else cores


class Slot(threading.Thread):
    """Does one piece of work after another. Nothing that goes wrong with one ends the slot."""

    def __init__(self, spec: SlotSpec, services: Services, poll_s: float, confinement: Confinement) -> None:
        super().__init__(name=f"slot {spec.name}", daemon=True)
        self._spec = spec
        self._services = services
        self._poll_s = poll_s
        self._confinement = confinement
        self._bell = threading.Event()
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

    def folders(self) -> set[Path]:
        return {runner.folder for runner in (self._ready, self._used) if runner is not None}

    def run(self) -> None:
        failures = 0
        while not self._services.stopping.is_set():
            self._bell.clear()
            try:
                if time.monotonic() >= self._publish_at:
                    self._keep_one_ready()
                    self._publish_catalogue()
                if not self._work_once():
                    self._keep_one_ready()
                    self._bell.wait(self._poll_s)
                failures = 0
            except Exception:
                delay_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                logger.exception("The slot for %s had trouble; it goes on in %g s.", self._spec.name, delay_s)
                failures += 1
                self._services.stopping.wait(delay_s)
        if self._ready is not None:
            self._ready.discard()

    def _work_once(self) -> bool:
        """Claim and do one piece of work; whether there was one."""
        found = claim(
            self._services.database,
            worker_id=self._spec.worker_id,
            kinds=self._spec.kinds,
            queues=self._spec.queues,
            lease_s=self._services.timing.lease_s,
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
