"""A job's events as they happen: server-sent events (the `text/event-stream` of the HTML standard).

    id: 3
    event: job.stage
    data: {"object":"event","seq":3,"type":"job.stage","data":{"stage":"plan"},"at":"…"}

A client that comes back with `Last-Event-ID` misses nothing; one that comes back after the end is told so with 204, which
stops a browser's EventSource from trying again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api import resources
from api.dependencies import Services
from store.errors import NotFound
from store.jobs import JobRepository
from store.pages import MAX_LIMIT

MEDIA_TYPE = "text/event-stream"
PING_EVERY_S = 15.0
RECONNECT_MS = 2000

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def wants_stream(request: Request) -> bool:
    accepted = [kind.split(";")[0].strip().lower() for kind in request.headers.get("accept", "").split(",")]
    return MEDIA_TYPE in accepted


@dataclass(frozen=True)
class _News:
    """What happened after one event, and the job's version at that moment."""

    events: list[resources.Event]
    version: int
    over: bool


async def event_stream(services: Services, tenant_id: str, job_id: str, after: int) -> Response:
    """Events after the seq `after`, then every new one, until the job has ended. Raises NotFound."""

    def read(after: int) -> _News:
        with services.database.read() as session:
            jobs = JobRepository(session, tenant_id)
            job = jobs.get(job_id)
            page = jobs.events(job_id, after=after, limit=MAX_LIMIT)
            events = [resources.Event.of(row) for row in page.rows]
        return _News(events, job.version, over=job.status.terminal and not page.has_more)

    first = await run_in_threadpool(read, after)
    if first.over and not first.events and after > 0:
        return Response(status_code=204)

    async def stream() -> AsyncIterator[str]:
        news, seq = first, after
        yield f"retry: {RECONNECT_MS}\n\n"
        while True:
            for event in news.events:
                seq = event.seq
                yield f"id: {seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
            if news.over:
                return
            if len(news.events) < MAX_LIMIT:
                while not await services.watcher.changed(job_id, news.version, PING_EVERY_S):
                    if services.watcher.stopped:
                        return
                    yield ": ping\n\n"
            try:
                news = await run_in_threadpool(read, seq)
            except NotFound:  # deleted, long after its end
                return

    return StreamingResponse(stream(), media_type=MEDIA_TYPE, headers=_HEADERS)
