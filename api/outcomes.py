"""What a job leaves behind while it runs and when it ends: its events and its artifacts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api import resources, streams
from api.content import download
from api.dependencies import PageAfter, PageLimit, PageOrder, ServicesOf, TenantId, known_query
from api.problems import problems
from store.jobs import JobRepository
from store.pages import DEFAULT_LIMIT, Page
from store.tables import JobEvent

router = APIRouter(tags=["jobs"])


@router.get(
    "/jobs/{job_id}/events",
    summary="List what happened to a job",
    description=(
        "With `Accept: text/event-stream`, the events from the first one (or from `after`, or `Last-Event-ID`) on as they "
        "happen, until the job has ended; `limit` and `order` are for the list."
    ),
    response_model=resources.EventList,
    responses={
        **problems(401, 404),
        200: {"content": {streams.MEDIA_TYPE: {"schema": {"type": "string"}}}},
        204: {"description": "The stream is over: nothing came after `Last-Event-ID`, and nothing will"},
    },
    dependencies=[Depends(known_query("limit", "after", "order"))],
)
async def list_events(
    job_id: str,
    request: Request,
    services: ServicesOf,
    tenant_id: TenantId,
    limit: PageLimit = DEFAULT_LIMIT,
    after: Annotated[int | None, Query(ge=0, lt=2**31, description="A `seq`.")] = None,
    order: PageOrder = "desc",
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**31)] = None,
) -> Any:
    if streams.wants_stream(request):
        start = after if last_event_id is None else last_event_id
        return await streams.event_stream(services, tenant_id, job_id, start or 0)

    def read() -> Page[JobEvent]:
        with services.database.read() as session:
            return JobRepository(session, tenant_id).events(job_id, after, limit, order)

    page = await run_in_threadpool(read)
    return resources.EventList.of(page, resources.Event.of)


@router.get(
    "/jobs/{job_id}/artifacts",
    summary="List a job's artifacts",
    description="By name; empty until the job has succeeded.",
    responses=problems(401, 404),
    dependencies=[Depends(known_query("limit", "after"))],
)
def list_artifacts(
    job_id: str,
    request: Request,
    services: ServicesOf,
    tenant_id: TenantId,
    limit: PageLimit = DEFAULT_LIMIT,
    after: PageAfter = None,
) -> resources.ArtifactList:
    with services.database.read() as session:
        rows = JobRepository(session, tenant_id).artifacts(job_id)
    base_url = resources.base_url(request)
    page = resources.slice_of(rows, lambda row: row.name, limit=limit, after=after)
    return resources.ArtifactList.of(page, lambda row: resources.Artifact.of(row, job_id, base_url))


@router.get(
    "/jobs/{job_id}/artifacts/{name}",
    summary="Fetch an artifact",
    response_class=Response,
    responses={
        **problems(401, 404, 416),
        200: {"description": "The file", "content": {"*/*": {}}},
        206: {"description": "The requested range", "content": {"*/*": {}}},
        304: {"description": "The client has it"},
        307: {"description": "The object store has it, at a URL that works for a while"},
    },
)
def get_artifact(job_id: str, name: str, request: Request, services: ServicesOf, tenant_id: TenantId) -> Response:
    with services.database.read() as session:
        row = JobRepository(session, tenant_id).artifact(job_id, name)
    return download(
        request,
        services.objects,
        object_key=row.object_key,
        filename=row.name,
        media_type=row.media_type,
        size=row.size,
        sha256=row.sha256,
    )
