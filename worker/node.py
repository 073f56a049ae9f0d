"""The Celery process of a worker: it takes messages, and each of its children has one slot for jobs.

`python -m worker.node SPEC` is started by `worker.fleet`, with the settings in its environment. A message carries nothing;
the child that gets it looks into the database, does what it finds, and is done with the message when nothing is left. A
child also looks by itself every `worker_poll_s` seconds, so that a broker that is away, empty or deaf delays work and
never stops it. Neither process imports torch: the work is done by runners.

Told to end, the parent closes a pipe that all children watch: they end their runners, give their work back without a loss,
and only then the parent ends. A child that is killed is replaced, and its successor takes back at once what it held.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from billiard.process import current_process
from celery import signals

from store import logs, tracing
from store.database import Database
from store.doorbell import TASK_NAME, celery_app
from store.objects import object_store
from store.observing import observe
from store.queue import ANY_QUEUE
from store.settings import Settings
from worker import linux
from worker.attempt import Services
from worker.crew import Crew, served
from worker.devices import JobSlot
from worker.lease import Timing
from worker.probe import Confinement
from worker.sandbox import Policy
from worker.slot import Slot
from worker.sweeper import remove_leftovers

logger = logging.getLogger(__name__)

# A child says that it is up only after what it does first; on a busy host that takes its time.
CHILD_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class NodeSpec:
    """Everything that the node is told: the crew as its worker knows it, and the slots."""

    parent_pid: int
    owner: str
    scratch: str
    policy: str
    commands: str
    slots: list[JobSlot]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> NodeSpec:
        values = json.loads(text)
        return NodeSpec(**{**values, "slots": [JobSlot(**slot) for slot in values["slots"]]})

    def crew(self) -> Crew:
        confinement = Confinement(Policy.from_json(self.policy))
        return Crew(self.owner, Path(self.scratch), confinement, len(self.slots), self.commands)


class Node:
    """The parent; its `child` is what each forked process makes of it."""

    def __init__(self, spec: NodeSpec, settings: Settings) -> None:
        self._spec = spec
        self._settings = settings
        self._lifeline, self._held_by_parent = os.pipe()
        self.child: Child | None = None
        self._app = celery_app(settings.queue_url or "")
        self._app.conf.update(worker_proc_alive_timeout=CHILD_START_TIMEOUT_S)
        self._app.task(self._doorbell, name=TASK_NAME, ignore_result=True, acks_late=False, max_retries=0)

    def run(self) -> int:
        """Work until told to end; the exit status."""
        signals.worker_process_init.connect(self._begin_child)
        signals.worker_process_shutdown.connect(self._end_child)
        signals.worker_shutting_down.connect(self._release_children)
        signals.setup_logging.connect(_keep_our_logging)
        worker = self._app.Worker(
            hostname=f"pennyweight@{self._spec.owner.strip('/')}",
            pool="prefork",
            concurrency=len(self._spec.slots),
            queues=[ANY_QUEUE, *served(self._spec.slots)],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        worker.start()
        return worker.exitcode or 0

    def _doorbell(self) -> None:
        if self.child is not None:
            self.child.slot.answer()

    def _release_children(self, **_: Any) -> None:
        if self._held_by_parent >= 0:
            os.close(self._held_by_parent)
            self._held_by_parent = -1

    def _begin_child(self, **_: Any) -> None:
        # The parent is told to end, and tells us; a service manager that tells every process must not cut us off.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(self._held_by_parent)
        slot = self._spec.slots[current_process().index]
        self.child = Child(self._spec, self._settings, slot, self._lifeline)

    def _end_child(self, **_: Any) -> None:
        if self.child is not None:
            self.child.end()


class Child:
    """One slot for jobs, in the forked process, with everything that must not be shared with the parent."""

    def __init__(self, spec: NodeSpec, settings: Settings, job_slot: JobSlot, lifeline: int) -> None:
        observe(settings)
        self._settings = settings
        self._lifeline = lifeline
        self._stopping = threading.Event()
        crew = spec.crew()
        # The worker's own sweeper must not take the folders of our runners for leftovers.
        scratch = crew.scratch / f"jobs-{job_slot.index}"
        scratch.mkdir(exist_ok=True)
        scratch.chmod(0o711)
        remove_leftovers(scratch, set(), older_than_s=0)
        services = Services(
            Database(settings.resolved_database_url),
            object_store(settings.resolved_storage_url, settings.storage_public_url),
            Timing(lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s),
            self._stopping,
            scratch_bytes=settings.max_scratch_bytes,
            checkpoint_interval_s=settings.checkpoint_interval_s,
            checkpoint_grace_s=settings.checkpoint_grace_s,
            stop_timeout_s=settings.stop_timeout_s,
        )
        job_spec = crew.jobs(job_slot, scratch=scratch, succeeds=True)
        self.slot = Slot(job_spec, services, settings.worker_poll_s, crew.confinement)
        threading.Thread(target=self._watch_parent, name="lifeline", daemon=True).start()
        self.slot.start()

    def end(self) -> None:
        """Stop the slot and wait until its work is given back."""
        self._stopping.set()
        self.slot.ring()
        self.slot.join(self._settings.stop_timeout_s)
        tracing.stop()

    def _watch_parent(self) -> None:
        os.read(self._lifeline, 1)  # nobody ever writes: this returns when the parent has closed its end
        self._stopping.set()
        self.slot.ring()


def _keep_our_logging(**_: Any) -> None:
    """Connected to Celery's signal, this keeps Celery from configuring logs; ours are in place."""


def main(text: str) -> int:
    spec = NodeSpec.from_json(text)
    if sys.platform == "linux":
        linux.die_with_parent(signal.SIGTERM)
        if os.getppid() != spec.parent_pid:
            return 1
    settings = Settings()
    logs.configure(settings)
    for chatty in ("celery.worker.strategy", "celery.app.trace"):  # two lines for each doorbell, which mean nothing
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return Node(spec, settings).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
