"""`pennyweightd worker`: a worker without an API, until a signal says stop.

With PENNYWEIGHT_QUEUE_URL, Celery has the slots for jobs and wakes them; without it they are threads here, which look
into the database by themselves. Either way short work and the sweepers are in this process.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Sequence

from pennyweightd.data_folder import DataFolder
from pennyweightd.failures import Refusal, require_engine
from pennyweightd.options import open_database
from pennyweightd.server import open_objects, take_back
from store.doorbell import Doorbell, NoQueue
from store.observing import observe
from store.settings import Settings
from worker.devices import QUEUES, NoSuchDevice, job_slots
from worker.process import DEFAULT_COMMANDS
from worker.supervisor import ALIVE_FILE, Supervisor

SILENCE_S = 90.0


def work(settings: Settings, queues: Sequence[str] | None, cpu_slots: int, commands: str = DEFAULT_COMMANDS) -> None:
    """Work on these queues, by default on all that this machine can serve. Raises SchemaOutdated, Refusal."""
    require_engine()
    observe(settings)
    if unknown := sorted(set(queues or ()) - set(QUEUES)):
        raise Refusal(f"--queues: there is no queue {', '.join(unknown)}; there are {', '.join(QUEUES)}.")
    try:
        slots = job_slots(queues, cpu_slots, settings.gpus_per_job)
    except NoSuchDevice as error:
        raise Refusal(str(error)) from error
    with (
        DataFolder(settings.data_dir) as folder,
        open_database(settings) as database,
        contextlib.ExitStack() as stack,
    ):
        database.check_schema()
        objects = open_objects(settings)
        take_back(database, folder)
        stopping = _signals()
        if settings.queue_url is None:
            supervisor = Supervisor(settings, database, objects, owner=folder.owner, slots=slots, commands=commands)
        else:
            try:
                doorbell = stack.enter_context(Doorbell(database, settings.queue_url))
            except NoQueue as error:
                raise Refusal(str(error)) from error
            supervisor = Supervisor(
                settings,
                database,
                objects,
                owner=folder.owner,
                slots=(),
                elsewhere=slots,
                ring_others=doorbell.ring,
                commands=commands,
            )
        supervisor.start()
        stack.callback(supervisor.stop)
        if settings.queue_url is not None:
            from worker.fleet import CeleryProcess  # Celery is an extra

            stack.enter_context(CeleryProcess(settings, supervisor.crew, slots))
        served = ", ".join(sorted({queue for slot in slots for queue in slot.queues}))
        level = supervisor.crew.confinement.level
        print(
            f"Pennyweight works: {len(slots)} slot(s) for {served}, sandbox level {level}; Ctrl-C stops it", flush=True
        )
        stopping.wait()
        supervisor.begin_stop()


def require_alive(settings: Settings) -> None:
    """Raises Refusal unless the worker on this data folder has lately said that all its threads are alive."""
    path = settings.data_dir / ALIVE_FILE
    silent_s = time.time() - path.stat().st_mtime if path.exists() else None
    if silent_s is None or silent_s > SILENCE_S:
        since = "never" if silent_s is None else f"{silent_s:.0f} s ago"
        raise Refusal(f"The worker on {settings.data_dir} is not alive (last heard of: {since}).")


def _signals() -> threading.Event:
    """Set by SIGINT and SIGTERM."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
