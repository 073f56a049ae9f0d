"""A worker: claims work, gives it to runners, keeps the leases, sweeps.

Threads of one process: a slot for each GPU (or for the CPU), one for short work (so that an inspection never waits behind
a two-hour job), and the sweepers. torch is imported in none of them. Where Celery has the slots for jobs, in processes of
their own (`worker.fleet`), the rest of the worker is still this.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from store.catalogue import CatalogueRepository
from store.database import Database
from store.objects import ObjectStore
from store.settings import Settings
from worker.attempt import Services
from worker.crew import Crew
from worker.devices import JobSlot, job_slots
from worker.housekeeper import Housekeeper
from worker.lease import Timing
from worker.probe import choose_confinement
from worker.process import DEFAULT_COMMANDS
from worker.sandbox import FILE_BYTES
from worker.slot import Slot
from worker.sweeper import Sweeper, remove_leftovers

logger = logging.getLogger(__name__)

SCRATCH_FOLDER = "scratch"
ALIVE_FILE = "worker.alive"
# Others may pass through on the way to a folder whose name they know, and list nothing.
PASSABLE = 0o711


class Supervisor:
    """Start it once, stop it once; `wake` tells it that there may be something to do."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        objects: ObjectStore,
        *,
        owner: str | None = None,
        slots: Sequence[JobSlot] | None = None,
        elsewhere: Sequence[JobSlot] = (),
        ring_others: Callable[[], None] = lambda: None,
        commands: str = DEFAULT_COMMANDS,
    ) -> None:
        """owner: begins the worker ids under which leases are held. slots: those for jobs, by default one for each device
        here; elsewhere: those that other processes of this worker have. ring_others: tells workers in other processes
        that there may be work. commands: the runners' command table."""
        self._settings = settings
        self._database = database
        self._objects = objects
        self._owner = owner or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}/"
        self._slots_here = job_slots(gpus_per_slot=settings.gpus_per_job) if slots is None else slots
        self._elsewhere = elsewhere
        self._ring_others = ring_others
        self._commands = commands
        self._stopping = threading.Event()
        self._scratch = settings.data_dir / SCRATCH_FOLDER
        self._slots: list[Slot] = []
        self._sweeper: Sweeper | None = None
        self._housekeeper: Housekeeper | None = None
        self.crew: Crew | None = None

    def start(self) -> None:
        """Find out how runners can be confined here, and begin to work. Raises NoSandbox if no runner starts."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._scratch.chmod(PASSABLE)
        remove_leftovers(self._scratch, set(), older_than_s=0)
        limit = self._settings.max_scratch_bytes
        # A decoded dataset is one file; below FILE_BYTES the folder as a whole is what is measured.
        file_bytes = max(FILE_BYTES, limit)
        confinement = choose_confinement(self._scratch, (str(self._settings.data_dir),), file_bytes)
        job_slots_in_all = len(self._slots_here) + len(self._elsewhere)
        self.crew = Crew(self._owner, self._scratch, confinement, job_slots_in_all, self._commands)
        timing = Timing(lease_s=self._settings.lease_s, heartbeat_s=self._settings.heartbeat_s)
        services = Services(
            self._database,
            self._objects,
            timing,
            self._stopping,
            scratch_bytes=limit,
            checkpoint_interval_s=self._settings.checkpoint_interval_s,
            checkpoint_grace_s=self._settings.checkpoint_grace_s,
            stop_timeout_s=self._settings.stop_timeout_s,
        )
        specs = [self.crew.short_work(), *(self.crew.jobs(slot) for slot in self._slots_here)]
        self._slots = [Slot(spec, services, self._settings.poll_s, confinement, self._tell_everyone) for spec in specs]
        self._sweeper = Sweeper(
            self._database,
            self._scratch,
            self._folders_in_use,
            self._tell_everyone,
            self._sign_of_life,
            sweep_s=self._settings.sweep_s,
            lease_s=self._settings.lease_s,
            stopping=self._stopping,
        )
        self._housekeeper = Housekeeper(self._settings, self._database, self._objects, self._stopping)
        for thread in (*self._slots, self._sweeper, self._housekeeper):
            thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Planned stop: end the runners, give their work back without counting a loss, and wait for the threads."""
        deadline = time.monotonic() + (self._settings.stop_timeout_s if timeout_s is None else timeout_s)
        self.begin_stop()
        for thread in (*self._slots, *filter(None, [self._sweeper, self._housekeeper])):
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

    def _tell_everyone(self) -> None:
        self.wake()
        self._ring_others()

    def _sign_of_life(self) -> None:
        """Keep this worker's catalogue rows fresh. Not the slots' own doing: one may be busy for hours."""
        if all(slot.is_alive() for slot in self._slots):
            (self._settings.data_dir / ALIVE_FILE).touch()
        with self._database.transaction() as session:
            for slot in self._slots:
                if slot.is_alive():
                    CatalogueRepository(session).seen(slot.worker_id)

    def _folders_in_use(self) -> set[Path]:
        return {folder for slot in self._slots for folder in slot.folders()}
