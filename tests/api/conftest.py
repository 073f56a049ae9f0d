"""A real service per test: uvicorn on loopback over SQLite and local files. Only the worker is played by hand."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import make_url

from api.app import create_app
from api.dependencies import Services
from store.catalogue import CatalogueRepository
from store.claims import Claim, StoredArtifact
from store.contract import (
    Catalogue,
    ErrorCode,
    ErrorInfo,
    JobRequest,
    JobResult,
    ModelInspection,
    PlanOutcome,
    WorkKind,
)
from store.database import Database
from store.keys import KeyRepository
from store.objects import LocalObjects, ObjectStore
from store.plans import PlanRepository
from store.settings import Settings
from store.tables import LOCAL_TENANT, Tenant
from store.work import cancel_job, claim, finish_job, finish_model, finish_plan, reject
from tests.api.webhook_receiver import Receiver, receiving
from tests.databases import Databases, databases, execute_on_server

CHECKPOINT = b"weights " * 1000
HALF = {"flops": {"max_ratio": 0.5}}
NO_MODEL = "mdl_" + "0" * 26
NO_DATASET = "ds_" + "0" * 26
ARTIFACT = bytes(range(256)) * 20


@dataclass
class Service:
    """A running service with the store behind it; `client` talks to it, `rings` counts how often it woke a worker."""

    url: str
    settings: Settings
    database: Database
    objects: ObjectStore
    client: httpx.Client
    services: Services
    rings: list[float] = field(default_factory=list)

    def upload(self, data: bytes = CHECKPOINT, **fields: str) -> dict[str, Any]:
        answer = self.client.post("/v1/models", data=fields, files={"file": ("net.pt", data)})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def job(self, **options: Any) -> dict[str, Any]:
        model = options.pop("model", None) or self.upload()["id"]
        answer = self.client.post("/v1/jobs", json={"model": model, "budget": HALF, **options})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def key(self, tenant: str = LOCAL_TENANT) -> str:
        with self.database.transaction() as session:
            if session.get(Tenant, tenant) is None:
                session.add(Tenant(id=tenant, name=tenant, created_at=self.database.now(session)))
                session.flush()
            return KeyRepository(session, tenant).create("test")[1]

    def publish(self, catalogue: Catalogue) -> None:
        with self.database.transaction() as session:
            CatalogueRepository(session).publish("worker", catalogue)

    def stored_files(self) -> list[Path]:
        """Every file under the object store, half-written ones included."""
        return [path for path in (self.settings.data_dir / "objects").rglob("*") if path.is_file()]

    def claim(self, kind: WorkKind):
        return claim(self.database, worker_id="w", kinds={kind}, queues={"cpu"}, lease_s=60)

    def inspect_model(self) -> None:
        """What a worker does with the oldest model."""
        inspection = ModelInspection(
            format="state_dict",
            architecture="cifar_resnet20",
            architecture_args={},
            input_shape=[3, 32, 32],
            profile=PROFILE,
        )
        finish_model(self.database, self.claim(WorkKind.inspect_model), inspection)

    def reject_model(self) -> None:
        error = ErrorInfo(code=ErrorCode.unsafe_model, message="It names os.system.")
        reject(self.database, self.claim(WorkKind.inspect_model), error)

    def end_cancelled(self, claim: Claim) -> None:
        """What a worker does with a job that was cancelled under it."""
        cancel_job(self.database, claim)

    @contextmanager
    def database_lost(self) -> Iterator[None]:
        """Nobody gets into the database while the block runs (and never again into a file)."""
        url = make_url(self.settings.resolved_database_url)
        self.database.dispose()
        if url.get_backend_name() == "sqlite":
            path = Path(url.database)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.write_bytes(b"no database" * 1000)
            yield
            return
        server_url = url.set(database="postgres").render_as_string(hide_password=False)
        execute_on_server(server_url, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
        try:
            yield
        finally:
            execute_on_server(server_url, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')

    def stop_waiting(self) -> None:
        """What a stopping server does."""
        self.services.watcher.stop()

    def plan(self, model: str, tenant: str = LOCAL_TENANT) -> str:
        """A plan in the making, put there without asking over HTTP, which would wait for it."""
        with self.database.transaction() as session:
            request = JobRequest.model_validate({"model": model, "budget": HALF})
            return PlanRepository(session, tenant).create(request).id

    def finish_plan(self, **changes: Any) -> None:
        """What a worker does with the oldest plan whose model is ready."""
        finish_plan(self.database, self.claim(WorkKind.plan), PlanOutcome.model_validate({**OUTCOME, **changes}))

    @contextmanager
    def planner(self, **changes: Any) -> Iterator[None]:
        """A worker that makes plans while the block runs."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(0.02):
                if (found := self.claim(WorkKind.plan)) is not None:
                    finish_plan(self.database, found, PlanOutcome.model_validate({**OUTCOME, **changes}))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def finish_job(self, files: Mapping[str, bytes] | None = None) -> None:
        """What a worker does with the oldest job whose model is ready: these artifacts, or one."""
        work, artifacts = self.claim(WorkKind.job), []
        for name, data in (files or {"model.onnx": ARTIFACT}).items():
            with self.objects.open_writer(work.object_key(name)) as writer:
                writer.write(data)
                stored = writer.commit()
            artifacts.append(StoredArtifact(name, "application/onnx", stored.size, stored.sha256, stored.key))
        result = JobResult.model_validate({**RESULT, "artifacts": [artifact.__dict__ for artifact in artifacts]})
        finish_job(self.database, work, result=result, artifacts=artifacts)


MEASURED = {
    "params": 10,
    "macs": 20,
    "flops": 40,
    "weight_bytes": 40,
    "peak_activation_bytes": 8,
    "memory_bytes": 48,
    "size_bytes": 100,
}
PROFILE = {key: value for key, value in MEASURED.items() if key != "size_bytes"} | {"layers": []}
RESULT = {
    "met": True,
    "constraints": [{"metric": "flops", "kind": None, "limit": 50, "value": 40, "met": True}],
    "baseline": MEASURED,
    "compressed": MEASURED,
    "equivalence": {"max_relative_error": 1e-14, "passed": True},
    "layers": [],
    "frozen": [],
    "provenance": {"version": "0.1.0"},
}
OUTCOME = {
    "feasible": True,
    "predicted": PROFILE,
    "baseline": PROFILE,
    "constraints": RESULT["constraints"],
    "layers": [
        {
            "name": "layer1.0.conv1",
            "before": {"out": 16, "params": 2304, "macs": 2359296},
            "after": {"out": 9, "params": 1296, "macs": 1327104},
            "min": 4,
            "max": 16,
            "group": "layer1.0.conv1",
        }
    ],
    "frozen": [{"layer": "linear", "operator": "output", "reason": "it is an output of the network"}],
    "note": "flops is used to 99.9 %",
}
CATALOGUE = Catalogue.model_validate(
    {
        "version": "0.1.0",
        "methods": [
            {
                "type": name,
                "title": name.title(),
                "description": "A method.",
                "schema": {
                    "type": "object",
                    "properties": {"type": {"const": name}, "round_to": {"type": "integer", "minimum": 1}},
                    "additionalProperties": False,
                },
            }
            for name in ("auto", "magnitude")
        ],
        "architectures": [
            {
                "name": name,
                "title": name,
                "input_shape": [3, 32, 32],
                "args_schema": {
                    "type": "object",
                    "properties": {"depth": {"type": "integer"}},
                    "additionalProperties": False,
                },
            }
            for name in ("cifar_resnet", "cifar_resnet20", "cifar_resnet56")
        ],
        "devices": ["cpu"],
        "versions": {"torch": "2.15"},
        "sandbox_level": 2,
        "sandbox_kind": "bubblewrap",
    }
)


@pytest.fixture(scope="session")
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Freshly migrated databases: SQLite, or what PENNYWEIGHT_TEST_API_DIALECT says."""
    dialect = os.environ.get("PENNYWEIGHT_TEST_API_DIALECT", "sqlite")
    server_url = None if dialect == "sqlite" else request.getfixturevalue("postgres_url")
    with databases(dialect, tmp_path_factory.mktemp("template"), server_url, lambda _: None) as made:
        yield made


@contextmanager
def run_service(
    data_dir: Path, migrated: Databases, objects: ObjectStore | None = None, **options: Any
) -> Iterator[Service]:
    """A service with these settings over a new database, and over this object store or new local files."""
    settings = Settings(data_dir=data_dir, **options)
    settings.data_dir.mkdir(exist_ok=True)
    url = migrated.take(settings.data_dir / "pennyweight.db")
    settings = settings.model_copy(update={"database_url": url})
    database = Database(url)
    objects = objects or LocalObjects(settings.data_dir / "objects")
    rings: list[float] = []
    app = create_app(settings, database, objects, wake=lambda: rings.append(time.monotonic()))
    with listening(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Service(url, settings, database, objects, client, app.state.services, rings)
    database.dispose()
    migrated.give_back(settings.resolved_database_url)


@pytest.fixture
def serve(tmp_path: Path, migrated: Databases) -> Callable[..., AbstractContextManager[Service]]:
    """`with serve(max_upload_bytes=…) as service`: a service of the test's own."""
    return partial(run_service, tmp_path / "data", migrated)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def service(serve: Callable[..., Any]) -> Iterator[Service]:
    with serve() as service:
        yield service


@pytest.fixture
def client(service: Service) -> httpx.Client:
    return service.client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that the answer is this problem, complete; returns its document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    members = {"type", "title", "status", "detail", "instance", "code", "request_id", "errors"}
    assert set(document) == members | ({"quota"} if code in ("quota_exceeded", "too_many_jobs") else set())
    assert (document["status"], document["code"]) == (status, code)
    assert document["type"] == f"urn:pennyweight:problem:{code}"
    assert document["instance"] == answer.request.url.path
    assert document["request_id"] == answer.headers["x-request-id"]
    return document


def pointers(answer: httpx.Response) -> dict[str, str]:
    """The errors of a 422 problem: pointer → detail."""
    return {error["pointer"]: error["detail"] for error in problem(answer, 422, answer.json()["code"])["errors"]}


def spec(**options: Any) -> str:
    return json.dumps({"budget": HALF, **options})
