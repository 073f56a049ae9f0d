"""Is it alive, is it ready, what is it: for load balancers, container health checks and people."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as installed_version
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from api.dependencies import Services
from api.probes import Part, Probe
from api.problems import problems
from store import broker, statistics
from store.catalogue import CatalogueRepository

VERSION = installed_version("pennyweight-server")

router = APIRouter(tags=["operations"])
versioned = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class WorkerPart(Part):
    """live: slots that were heard of lately; sandbox_level: the lowest among them, which is what can be relied on."""

    live: int = 0
    version: str | None = None
    devices: list[str] = Field(default_factory=list)
    sandbox_level: int | None = None
    sandbox_kind: str | None = None


class Readiness(BaseModel):
    status: Literal["ready", "degraded", "unready"]
    database: Part
    migrations: Part
    objects: Part
    queue: Part
    worker: WorkerPart


class Version(BaseModel):
    version: str
    api: Literal["v1"] = "v1"


class Probes:
    """The questions that `/readyz` asks about one application's parts."""

    def __init__(self, services: Services) -> None:
        self._database = Probe("The database", lambda: _database(services))
        self._migrations = Probe("The database's schema", lambda: _migrations(services))
        self._objects = Probe("The object store", lambda: _objects(services))
        self._queue = Probe("The broker", lambda: _queue(services))
        self._worker = Probe("The list of workers", lambda: _worker(services))

    async def readiness(self) -> Readiness:
        """Everything at once, in little more than the time that one probe may take."""
        database, migrations, objects, queue, worker = await asyncio.gather(
            self._database.answer(),
            self._migrations.answer(),
            self._objects.answer(),
            self._queue.answer(),
            self._worker.answer(),
        )
        if not isinstance(worker, WorkerPart):
            worker = WorkerPart(status="unknown", detail=worker.detail)
        if database.status == "down":
            migrations = Part(status="unknown", detail=database.detail)
        if "down" in (database.status, migrations.status, objects.status):
            status: Literal["ready", "degraded", "unready"] = "unready"
        else:
            status = "ready" if worker.status == "ok" and queue.status != "down" else "degraded"
        return Readiness(
            status=status, database=database, migrations=migrations, objects=objects, queue=queue, worker=worker
        )


# Both answer on the event loop itself: neither waits for a thread that slow requests may hold.


@router.get("/healthz", summary="Is the process alive?", responses=problems())
async def healthz() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="Can it do its work?",
    description="503 when the database, its schema or the object store is down. Without a worker it is `degraded`: jobs "
    "wait; without its broker too: workers hear of them later. Each part has two seconds to answer.",
    responses={**problems(), 503: {"description": "A part is down", "model": Readiness}},
)
async def readyz(request: Request, response: Response) -> Readiness:
    readiness = await request.app.state.probes.readiness()
    if readiness.status == "unready":
        response.status_code = 503
    return readiness


@versioned.get("/version", summary="What is running?", responses=problems())
def get_version() -> Version:
    return Version(version=VERSION)


def _database(services: Services) -> Part:
    with services.database.read() as session:
        session.execute(select(1))
    return Part(status="ok")


def _migrations(services: Services) -> Part:
    services.database.check_schema()
    return Part(status="ok")


def _objects(services: Services) -> Part:
    services.objects.check()
    return Part(status="ok")


def _queue(services: Services) -> Part:
    if services.settings.queue_url is None:
        return Part(status="unused")
    broker.ping(services.settings.queue_url)
    return Part(status="ok")


def _worker(services: Services) -> WorkerPart:
    catalogue = services.catalogue()
    with services.database.read() as session:
        silent_for_s = CatalogueRepository(session).silent_for_s()
        live = [group for group in statistics.workers(session) if group.live]
    if catalogue is None or silent_for_s is None:
        return WorkerPart(status="missing", detail="No worker has published what it can do; jobs wait for the first.")
    known = {"version": catalogue.version, "devices": catalogue.devices}
    if not live:
        return WorkerPart(
            status="stale",
            detail=f"No worker has been heard of for {silent_for_s:.0f} s; jobs wait for one.",
            sandbox_level=catalogue.sandbox_level,
            sandbox_kind=catalogue.sandbox_kind,
            **known,
        )
    weakest = min(live, key=lambda group: group.sandbox_level)
    return WorkerPart(
        status="ok",
        live=sum(group.live for group in live),
        sandbox_level=weakest.sandbox_level,
        sandbox_kind=weakest.sandbox_kind,
        **known,
    )
