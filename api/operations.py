"""Is it alive, is it ready, what is it: for load balancers, container health checks and people."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version as installed_version
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.dependencies import Services, ServicesOf
from api.problems import problems
from store.catalogue import CatalogueRepository
from store.identifiers import new_id

logger = logging.getLogger("api")

WORKER_SILENCE_S = 90
"""A living worker says that it is there every 20 s or so."""

VERSION = installed_version("pennyweight-server")

router = APIRouter(tags=["operations"])
versioned = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Part(BaseModel):
    """A worker is `missing` before the first has started and `stale` when none has been heard of lately: uploads and
    jobs are accepted, and wait for one."""

    status: Literal["ok", "down", "missing", "stale"]
    detail: str | None = None


class WorkerPart(Part):
    version: str | None = None
    devices: list[str] = []
    sandbox_level: int | None = None
    sandbox_kind: str | None = None


class Readiness(BaseModel):
    status: Literal["ready", "degraded", "unready"]
    database: Part
    objects: Part
    worker: WorkerPart


class Version(BaseModel):
    version: str
    api: Literal["v1"] = "v1"


@router.get("/healthz", summary="Is the process alive?", responses=problems())
def healthz() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="Can it do its work?",
    description="503 when the database or the object store is down. Without a worker it is `degraded`: jobs wait.",
    responses={**problems(), 503: {"description": "A part is down", "model": Readiness}},
)
def readyz(response: Response, services: ServicesOf) -> Readiness:
    database = _check("The database", lambda: services.database.check_schema())
    objects = _check("The object store", lambda: _try_writing(services))
    worker = _worker(services) if database.status == "ok" else WorkerPart(status="missing", detail=database.detail)
    if "down" in (database.status, objects.status):
        response.status_code = 503
        status: Literal["ready", "degraded", "unready"] = "unready"
    else:
        status = "ready" if worker.status == "ok" else "degraded"
    return Readiness(status=status, database=database, objects=objects, worker=worker)


@versioned.get("/version", summary="What is running?", responses=problems())
def get_version() -> Version:
    return Version(version=VERSION)


def _check(what: str, attempt: Callable[[], None]) -> Part:
    try:
        attempt()
    except Exception as error:
        logger.exception("%s is not ready", what)
        return Part(status="down", detail=f"{what} does not work ({type(error).__name__}); the server's log has more.")
    return Part(status="ok")


def _try_writing(services: Services) -> None:
    """Writing proves more than reading: a full or read-only disk shows. The probe is never committed."""
    with services.objects.open_writer(f"probes/{new_id('key')}") as writer:
        writer.write(b"ready?")


def _worker(services: Services) -> WorkerPart:
    catalogue = services.catalogue()
    with services.database.read() as session:
        silent_for_s = CatalogueRepository(session).silent_for_s()
    if catalogue is None or silent_for_s is None:
        return WorkerPart(status="missing", detail="No worker has published what it can do; jobs wait for the first.")
    stale = silent_for_s > WORKER_SILENCE_S
    return WorkerPart(
        status="stale" if stale else "ok",
        detail=f"No worker has been heard of for {silent_for_s:.0f} s; jobs wait for one." if stale else None,
        version=catalogue.version,
        devices=catalogue.devices,
        sandbox_level=catalogue.sandbox_level,
        sandbox_kind=catalogue.sandbox_kind,
    )
