"""The service as it is deployed, in processes of its own: on one machine, and as a fleet.

{SQLite, files, local supervisor} is one `pennyweightd serve`; {PostgreSQL, S3, Celery and Redis} is `pennyweightd api` and
`pennyweightd worker` beside the three servers. Runners do what uploaded scripts say, or are the engine's own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save

from core.architectures import build
from store.database import Database
from store.objects import ObjectStore, object_store
from tests.servers import Redis

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
ENGINE_ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}
TIMING = {
    "PENNYWEIGHT_LEASE_S": "3",
    "PENNYWEIGHT_HEARTBEAT_S": "0.5",
    "PENNYWEIGHT_SWEEP_S": "0.5",
    "PENNYWEIGHT_POLL_S": "0.2",
    "PENNYWEIGHT_WORKER_POLL_S": "2",
    "PENNYWEIGHT_STOP_TIMEOUT_S": "20",
}
READY = re.compile(r"Pennyweight (?:is ready: (http://\S+)|works)")


class Process:
    """One of the service's own processes; it can be killed and started again."""

    def __init__(self, folder: Path, name: str, command: list[str], environment: dict[str, str]) -> None:
        self._command = [sys.executable, *command]
        self.environment = environment
        self.log = folder / f"{name}.log"
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Process:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        match = READY.match(line := self._process.stdout.readline())
        assert match, line + self.log.read_text()[-2000:]
        self.url = match[1] or ""
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout_s: float = 40) -> int:
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        if self.running:
            self._process.kill()
            self._process.wait()

    def family(self) -> list[int]:
        """Every process below this one, the runners among them, nearest first."""
        return descendants(self.pid)


class Stack:
    """Puts scripts in as models, watches jobs. `workers[0]` is the process that holds the slots."""

    kind = ""

    def __init__(self, folder: Path, environment: dict[str, str], worker_command: list[str]) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PENNYWEIGHT_")}
        self.environment = {**kept, "OMP_NUM_THREADS": "1", **TIMING, **environment}
        self.worker_command = worker_command
        self.processes: list[Process] = []
        self.workers: list[Process] = []
        self.client = httpx.Client()
        self.database: Database
        self.objects: ObjectStore

    def process(self, name: str, command: list[str], **environment: str) -> Process:
        made = Process(self.folder, name, command, {**self.environment, **environment})
        self.processes.append(made)
        return made

    def add_worker(self) -> Process:
        """One more worker, with a data folder of its own."""
        name = f"worker-{len(self.workers)}"
        data = str(self.folder / name)
        self.workers.append(self.process(name, self.worker_command, PENNYWEIGHT_DATA_DIR=data))
        return self.workers[-1].start()

    def connect(self, api: Process) -> None:
        self.client.close()
        self.client = httpx.Client(base_url=api.url, timeout=30)

    def close(self) -> None:
        self.client.close()
        for process in self.processes:
            if process.running:
                process.kill()
        self.database.dispose()

    # --- what a user does

    def post_job(self, do: str, **script: Any) -> str:
        answer = self.client.post("/v1/jobs", **job_form(do, **script))
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def job(self, id: str) -> dict[str, Any]:
        return self.client.get(f"/v1/jobs/{id}").raise_for_status().json()

    def events(self, id: str) -> list[str]:
        page = self.client.get(f"/v1/jobs/{id}/events", params={"limit": 100, "order": "asc"}).raise_for_status().json()
        return [event["type"] for event in page["data"]]

    def when(
        self, id: str, condition: Callable[[dict[str, Any]], Any], timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        return wait_for(lambda: (job := self.job(id)) and condition(job) and job, timeout_s, lambda: str(self.job(id)))

    def at_stage(self, id: str, stage: str) -> dict[str, Any]:
        return self.when(id, lambda job: job["stage"] == stage)

    def ended(self, id: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        job = self.when(id, lambda job: job["finished_at"] is not None, timeout_s)
        ends = [type for type in self.events(id) if type in ("job.succeeded", "job.failed", "job.cancelled")]
        assert ends == [f"job.{job['status']}"], ends
        return job


class OneMachine(Stack):
    """`pennyweightd serve`, or the same with scripted runners."""

    kind = "one machine"

    def __init__(self, folder: Path, *, scripted: bool = True) -> None:
        program = ["-m", "tests.stacks.scripted_serve"] if scripted else ["-m", "pennyweightd", "serve"]
        super().__init__(folder, {"PENNYWEIGHT_PORT": "0", "PENNYWEIGHT_DATA_DIR": str(folder / "data")}, program)
        self.workers.append(self.process("serve", program))
        self.restart_worker()
        self.database = Database(f"sqlite:///{folder}/data/pennyweight.db")
        self.objects = object_store((folder / "data" / "objects").as_uri())

    def restart_worker(self) -> None:
        self.connect(self.workers[0].start())


class Fleet(Stack):
    """API and worker apart. `postgres` and `redis` may be restarted by tests that own them."""

    kind = "fleet"

    def __init__(
        self,
        folder: Path,
        database_url: str,
        storage_url: str,
        queue_url: str,
        *,
        scripted: bool = True,
        slots: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        own = ["-m", "tests.stacks.scripted_worker", "cpu", str(slots)]
        engine = ["-m", "pennyweightd", "worker", "--queues", "cpu", "--slots", str(slots)]
        urls = {
            "PENNYWEIGHT_DATABASE_URL": database_url,
            "PENNYWEIGHT_STORAGE_URL": storage_url,
            "PENNYWEIGHT_QUEUE_URL": queue_url,
            **(environment or {}),
        }
        super().__init__(folder, urls, own if scripted else engine)
        self.database = Database(database_url)
        self.database.migrate()
        self.objects = object_store(storage_url)
        data = str(folder / "api")
        self.api = self.process("api", ["-m", "pennyweightd", "api", "--port", "0"], PENNYWEIGHT_DATA_DIR=data)
        self.connect(self.api.start())
        self.add_worker()

    def restart_worker(self) -> None:
        self.workers[0].start()

    def celery(self, worker: Process | None = None) -> list[int]:
        """The Celery process of a worker, by default the first one, and then its children."""
        return [pid for pid in (worker or self.workers[0]).family() if "worker.node" in command_of(pid)]


@contextlib.contextmanager
def queue_server() -> Iterator[str]:
    """The Redis that the suite was given, a database of its own in it, or a private one."""
    if given := os.environ.get("PENNYWEIGHT_TEST_QUEUE_URL"):
        yield f"{given.rpartition('/')[0]}/{secrets.randbelow(15) + 1}"
        return
    with Redis() as redis:
        yield redis.url()


def job_form(do: str, **script: Any) -> dict[str, Any]:
    """The form of a job whose runner does `do`, for httpx."""
    spec = {"budget": {"params": {"max_ratio": 0.5}}, "labels": {"do": do}}
    content = json.dumps({"do": do, **script}).encode()
    return {"files": {"model": ("net.pt", content)}, "data": {"spec": json.dumps(spec)}}


@functools.cache
def _checkpoint() -> bytes:
    torch.manual_seed(0)
    return save(build("cifar_resnet", ENGINE_ARGS).state_dict())


def engine_job_form() -> dict[str, Any]:
    """The form of a job for the engine: a small network with random weights."""
    spec = {"budget": {"params": {"max_ratio": 0.6}}, "outputs": ["safetensors"]}
    data = {
        "spec": json.dumps(spec),
        "architecture": "cifar_resnet",
        "architecture_args": json.dumps(ENGINE_ARGS),
        "input_shape": "[1, 8, 8]",
    }
    return {"files": {"model": ("net.safetensors", _checkpoint())}, "data": data}


def wait_for(condition: Callable[[], Any], timeout_s: float = PATIENCE_S, what: Callable[[], str] = lambda: "") -> Any:
    """Wait until `condition` gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what()}")


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop(0)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                children = [int(child) for child in (task / "children").read_text().split()]
                found += children
                waiting += children
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def busy_runners(process: Process) -> list[int]:
    """The runners below a process that have been given a task."""
    scratch = Path(process.environment["PENNYWEIGHT_DATA_DIR"]) / "scratch"
    busy = [folder for folder, _, files in os.walk(scratch) if "task.json" in files]  # unlike glob, minds no vanishing
    return [pid for pid in process.family() if any(folder in command_of(pid) for folder in busy)]
