"""All artifacts of a job in one zip archive, put together while it is sent."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator, Generator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from api import triton
from api.archive import Member, zip_size, zip_stream
from api.content import attachment, matches
from api.dependencies import Services, ServicesOf, TenantId, known_query
from api.onnx_signature import read_signature
from api.problems import Problem, problems
from store.jobs import JobRepository
from store.tables import Artifact, Job, Model

router = APIRouter(tags=["jobs"])

Layout = Literal["flat", "triton"]
ONNX = "model.onnx"
_FORM = 1
"""Part of the entity tag: another number when the same artifacts give other bytes."""


@router.get(
    "/jobs/{job_id}/bundle",
    summary="Fetch all artifacts in one zip",
    description="`flat`: every artifact. `triton`: a model repository for Triton Inference Server, to be unpacked into it.",
    response_class=Response,
    responses={
        **problems(401, 404, 409),
        200: {"description": "The archive", "content": {"application/zip": {}}},
        304: {"description": "The client has it"},
    },
    dependencies=[Depends(known_query("layout"))],
)
def get_bundle(
    job_id: str,
    request: Request,
    services: ServicesOf,
    tenant_id: TenantId,
    layout: Annotated[Layout, Query(description="How the files lie in it.")] = "flat",
) -> Response:
    with services.database.read() as session:
        jobs = JobRepository(session, tenant_id)
        job, artifacts = jobs.get(job_id), jobs.artifacts(job_id)
        model = session.get(Model, job.model_id)  # it may have been deleted since
    if not artifacts:
        raise Problem("nothing_to_bundle", f"The job {job_id} is {job.status.value} and has no artifacts.")
    name = triton.model_name(job.name or (job.id if model is None else model.name))
    etag = _etag(layout, name, artifacts)
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "none",
        "Content-Disposition": attachment(f"{name}.zip" if layout == "flat" else f"{name}-triton.zip"),
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    members = _flat(services, artifacts) if layout == "flat" else _triton(services, job, name, artifacts)
    size = zip_size(members)
    if size is not None:
        headers["Content-Length"] = str(size)
    if request.state.head_only:
        return Response(headers=headers, media_type="application/zip")
    stream = zip_stream(members, job.finished_at or job.created_at)
    return StreamingResponse(_pieces(stream), headers=headers, media_type="application/zip")


def _flat(services: Services, artifacts: Sequence[Artifact]) -> list[Member]:
    return [_member(services, artifact, artifact.name) for artifact in artifacts]


def _triton(services: Services, job: Job, name: str, artifacts: Sequence[Artifact]) -> list[Member]:
    onnx = next((artifact for artifact in artifacts if artifact.name == ONNX), None)
    if onnx is None:
        raise Problem(
            "nothing_to_bundle",
            f"The job {job.id} made no {ONNX}, which Triton serves: ask for it with outputs ['onnx', …].",
        )

    def read(start: int, end: int) -> bytes:
        with services.objects.open_reader(onnx.object_key, start, end) as reader:
            return reader.read()

    try:
        config = triton.config(name, read_signature(read, onnx.size)).encode()
    except ValueError as error:
        raise Problem(
            "nothing_to_bundle", f"{ONNX} of the job {job.id} cannot be described to Triton: {error}."
        ) from error
    return [
        Member(f"{name}/config.pbtxt", len(config), lambda: io.BytesIO(config)),
        _member(services, onnx, f"{name}/1/{ONNX}"),
    ]


def _member(services: Services, artifact: Artifact, name: str) -> Member:
    return Member(name, artifact.size, lambda: services.objects.open_reader(artifact.object_key))


def _etag(layout: Layout, name: str, artifacts: Sequence[Artifact]) -> str:
    said = [_FORM, layout, name, *((artifact.name, artifact.sha256) for artifact in artifacts)]
    return f'"{hashlib.sha256(json.dumps(said).encode()).hexdigest()}"'


async def _pieces(stream: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    try:
        while (piece := await run_in_threadpool(next, stream, None)) is not None:
            yield piece
    finally:
        await run_in_threadpool(stream.close)
