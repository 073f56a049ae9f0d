"""A data folder with a migrated database, and a supervisor over it whose runners do what uploaded scripts say."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.contract import InspectionStatus, JobRequest, PlanStatus
from store.database import Database
from store.identifiers import new_id
from store.jobs import JobRepository
from store.layout import model_key
from store.models import ModelRepository
from store.objects import LocalObjects
from store.plans import PlanRepository
from store.settings import Settings
from store.tables import LOCAL_TENANT, Artifact, Job, Model, Plan, Work, WorkState
from worker.supervisor import Supervisor

SCRIPTED_COMMANDS = str(Path(__file__).parent / "scripted_commands.py")
PATIENCE_S = 30.0


class Bench:
    """One data folder: put scripts in as models, run jobs on them, look at what became of them."""

    def __init__(self, data_dir: Path, migrated: Path) -> None:
        data_dir.mkdir(mode=0o711)
        shutil.copy(migrated, data_dir / "pennyweight.db")
        # Fast enough for tests; the ratios are those of the defaults.
        self.settings = Settings(data_dir=data_dir, lease_s=3, heartbeat_s=0.6, sweep_s=0.3, poll_s=0.05)
        self.commands = SCRIPTED_COMMANDS
        self.database = Database(self.settings.resolved_database_url)
        self.objects = LocalObjects(data_dir / "objects")
        self._supervisors: list[Supervisor] = []

    def supervisor(self, owner: str | None = None) -> Supervisor:
        """A started supervisor."""
        supervisor = Supervisor(self.settings, self.database, self.objects, owner=owner, commands=self.commands)
        self._supervisors.append(supervisor)
        supervisor.start()
        return supervisor

    def close(self) -> None:
        for supervisor in self._supervisors:
            supervisor.stop(10)
        self.database.dispose()

    def add_model(self, do: str, **script: Any) -> str:
        content = json.dumps({"do": do, **script}).encode()
        id = new_id("mdl")
        key = model_key(LOCAL_TENANT, id)
        with self.objects.open_writer(key) as writer:
            writer.write(content)
            writer.commit()
        with self.database.transaction() as session:
            ModelRepository(session, LOCAL_TENANT).create(
                id=id,
                filename="net.pt",
                name="net",
                object_key=key,
                size_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        return id

    def add_job(self, do: str, *, max_runtime_s: int = 60, **script: Any) -> str:
        """A job whose runner does `do`."""
        request = JobRequest.model_validate(
            {
                "model": self.add_model(do, **script),
                "budget": {"params": {"max_ratio": 0.5}},
                "limits": {"max_runtime_s": max_runtime_s},
            }
        )
        with self.database.transaction() as session:
            return JobRepository(session, LOCAL_TENANT).create(request).id

    def add_plan(self, do: str, **fields: Any) -> str:
        """A plan whose runner does `do`."""
        body = {"model": self.add_model(do), "budget": {"params": {"max_ratio": 0.5}}, **fields}
        with self.database.transaction() as session:
            return PlanRepository(session, LOCAL_TENANT).create(JobRequest.model_validate(body)).id

    def planned(self, id: str, timeout_s: float = PATIENCE_S) -> Plan:
        """The plan, once it is made or has failed."""

        def over() -> Plan | None:
            with self.database.read() as session:
                plan = PlanRepository(session, LOCAL_TENANT).get(id)
            return None if plan.status is PlanStatus.planning else plan

        return self.when(over, timeout_s)

    def cancel(self, id: str) -> None:
        with self.database.transaction() as session:
            JobRepository(session, LOCAL_TENANT).request_cancel(id)

    def job(self, id: str) -> Job:
        with self.database.read() as session:
            return JobRepository(session, LOCAL_TENANT).get(id)

    def model(self, id: str) -> Model:
        with self.database.read() as session:
            return ModelRepository(session, LOCAL_TENANT).get(id)

    def work(self, id: str) -> Work:
        with self.database.read() as session:
            return session.get_one(Work, id)

    def artifacts(self, id: str) -> dict[str, Artifact]:
        with self.database.read() as session:
            return {artifact.name: artifact for artifact in JobRepository(session, LOCAL_TENANT).artifacts(id)}

    def events(self, id: str) -> list[str]:
        with self.database.read() as session:
            return [event.type for event in JobRepository(session, LOCAL_TENANT).events(id, limit=100).rows]

    def when(self, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
        """Wait until `condition` gives something true, and return that."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {timeout_s:g} s")

    def ended(self, id: str, timeout_s: float = PATIENCE_S) -> Job:
        return self.when(lambda: (job := self.job(id)).status.terminal and job, timeout_s)

    def at_stage(self, id: str, stage: str) -> Job:
        return self.when(lambda: (job := self.job(id)).stage == stage and job)

    def inspect_by_hand(self, job_id: str) -> None:
        """Make the job's model ready without a worker."""
        with self.database.transaction() as session:
            model = session.get_one(Model, session.get_one(Job, job_id).model_id)
            model.status, model.architecture_args = InspectionStatus.ready, {}
            session.get_one(Work, model.id).state = WorkState.done

    def inspected(self, id: str) -> Model:
        return self.when(lambda: (model := self.model(id)).status is not InspectionStatus.inspecting and model)

    def scratch_folders(self) -> list[Path]:
        """Folders of runners that have been given a task."""
        return sorted(path.parent for path in (self.settings.data_dir / "scratch").glob("runner-*/task.json"))

    def runner_pids(self) -> list[int]:
        """Runners of this data folder that have been given a task: each process that names its folder."""
        return [pid for folder in self.scratch_folders() for pid in processes_naming(str(folder))]

    def stored_keys(self, job_id: str) -> list[str]:
        root = self.settings.data_dir / "objects"
        return [str(path.relative_to(root)) for path in root.glob(f"tenants/*/jobs/{job_id}/**/*") if path.is_file()]


def processes_naming(text: str) -> list[int]:
    """Process ids whose command line holds `text`, oldest first."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if text.encode() in command:
                found.append(int(folder.name))
    return sorted(found)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "migrated.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.dispose()
    return path


@pytest.fixture
def bench(tmp_path: Path, migrated_database: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data", migrated_database)
    yield bench
    bench.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
