"""Keeps the Celery process of a worker running: starts it, starts it again when it dies, and tells it to end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from store.settings import Settings
from worker.crew import Crew
from worker.devices import JobSlot
from worker.node import NodeSpec
from worker.view import CODE_ROOT

logger = logging.getLogger(__name__)

RESTART_PAUSE_S = (0.1, 1.0, 5.0, 15.0)
# A process that has run for this long is started again at once, however often that has happened before.
STEADY_S = 60.0
# Beside what a child may take to give its work back.
SPARE_STOP_S = 5.0


class CeleryProcess:
    """Used as a context manager around the rest of the worker."""

    def __init__(self, settings: Settings, crew: Crew, slots: Sequence[JobSlot]) -> None:
        self._settings = settings
        self._spec = NodeSpec(
            parent_pid=os.getpid(),
            owner=crew.owner,
            scratch=str(crew.scratch),
            policy=crew.confinement.policy.to_json(),
            commands=crew.commands,
            slots=list(slots),
        )
        self._stopping = threading.Event()
        # The process ends with the thread that started it, so one thread starts them all and lives as long as we do.
        self._thread = threading.Thread(target=self._run, name="celery", daemon=True)

    def __enter__(self) -> CeleryProcess:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            process = self._start()
            while process.poll() is None and not self._stopping.wait(0.1):
                pass
            if self._stopping.is_set():
                self._end(process)
                return
            failures = 0 if time.monotonic() - started > STEADY_S else failures + 1
            pause_s = RESTART_PAUSE_S[min(failures, len(RESTART_PAUSE_S)) - 1]
            logger.error("The Celery process ended with status %d; a new one in %g s.", process.returncode, pause_s)
            self._stopping.wait(pause_s)

    def _start(self) -> subprocess.Popen[bytes]:
        given = {"PENNYWEIGHT_DATA_DIR": str(self._settings.data_dir)}
        command = [sys.executable, "-m", "worker.node", self._spec.to_json()]
        return subprocess.Popen(command, cwd=CODE_ROOT, env=os.environ | given, stdin=subprocess.DEVNULL)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._settings.stop_timeout_s + SPARE_STOP_S)
            except subprocess.TimeoutExpired:
                logger.error("The Celery process did not stop in time; its leases will expire.")
                process.kill()
                process.wait()
