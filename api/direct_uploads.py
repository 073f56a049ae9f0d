"""Uploads in parts: announce a file, send its parts to the URLs that come back, complete it.

    POST /uploads → PUT each part → POST …/complete → the Model or Dataset

The parts go straight to the object store where clients can reach it, and through us where they cannot; a client need
not know which. GET tells which parts are there, with fresh URLs for the others, so an interrupted upload goes on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from api import resources
from api.behind import Behind
from api.dependencies import Services, ServicesOf, TenantId, paged
from api.idempotency import Attempt, Once
from api.problems import Problem, problems
from api.requests import media_type, read_json, unsupported_media_type
from api.upload_completion import complete
from api.upload_requests import UploadCompletion, UploadRequest
from api.upload_resources import Upload, UploadList, UploadPart, UploadSummary, part_url, shown, summary, upload_url
from api.uploads import WRITE_BYTES, display_name, over_limit
from api.validation import check_architecture, validate
from store.errors import NotFound, PartsGone
from store.identifiers import new_id
from store.layout import dataset_key, model_key
from store.parts import PartUpload, PartWriter, StoredPart
from store.uploads import Purpose, UploadRepository, parts_of

router = APIRouter(tags=["uploads"])

PageOfUploads = paged("upl", "sha256")

MOST_PARTS = 1000
_MIB = 1 << 20
_PREFIX: dict[Purpose, Literal["mdl", "ds"]] = {"model": "mdl", "dataset": "ds"}

_upload_request: TypeAdapter[UploadRequest] = TypeAdapter(UploadRequest)
_completion: TypeAdapter[UploadCompletion] = TypeAdapter(UploadCompletion)


def _json_body(schema: str, *, required: bool = True) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": required, "content": content}}


@router.post(
    "/uploads",
    status_code=201,
    summary="Announce a file that comes in parts",
    responses=problems(401, 403, 409, 413, 415, 507),
    openapi_extra=_json_body("UploadRequest"),
)
async def create_upload(
    request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> Upload:
    value = await _json(request)
    body = validate(_upload_request, value)
    await once.begin(once.fingerprint(value))
    upload = await run_in_threadpool(_announce, body, request, services, tenant_id, once)
    response.headers["Location"] = upload_url(request, upload.id)
    return upload


def _announce(body: UploadRequest, request: Request, services: Services, tenant_id: str, once: Attempt) -> Upload:
    foreign = body.foreign_field()
    if foreign is not None:
        raise Problem.at(f"/{foreign}", "not_for_this", f"{foreign!r} says nothing of a {body.purpose}.")
    limit = services.settings.max_upload_bytes
    if body.size > limit:
        raise over_limit(limit, "size", announced=True)
    check_architecture(body.architecture, body.architecture_args, services.catalogue())
    resource_id = new_id(_PREFIX[body.purpose])
    key = (model_key if body.purpose == "model" else dataset_key)(tenant_id, resource_id)
    given = body.model_dump(mode="json", exclude_none=True, exclude={"filename", "size", "sha256", "purpose"})
    parts = services.objects.parts.begin(key, body.size, _part_size(body.size, services.settings.upload_part_bytes))
    try:
        with services.database.transaction() as session:
            once.settle(session)
            services.quotas.require_bytes(session, tenant_id, body.size)
            row = UploadRepository(session, tenant_id).create(
                id=new_id("upl"),
                purpose=body.purpose,
                resource_id=resource_id,
                filename=display_name(body.filename),
                fields=given,
                sha256=body.sha256,
                parts=parts,
                expires_s=services.settings.upload_expires_s,
            )
            upload = shown(row, request, services, [])
            once.keep(session, 201, upload, {"Location": upload_url(request, upload.id)})
            return upload
    except BaseException:
        services.objects.parts.abort(parts)
        raise


def _part_size(size: int, least: int) -> int:
    """At most a thousand parts: Swift takes no more."""
    return max(least, -(-size // (MOST_PARTS * _MIB)) * _MIB)


@router.get(
    "/uploads",
    summary="List uploads that are not complete",
    responses=problems(401),
)
def list_uploads(
    request: Request,
    services: ServicesOf,
    tenant_id: TenantId,
    page: PageOfUploads,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="Announced for this file.")] = None,
) -> UploadList:
    with services.database.read() as session:
        found = UploadRepository(session, tenant_id).list(sha256, *page)
    return UploadList.of(found, lambda row: UploadSummary(**summary(row, request)))


@router.get(
    "/uploads/{upload_id}", summary="Which parts are there, and URLs for the others", responses=problems(401, 404)
)
def get_upload(upload_id: str, request: Request, services: ServicesOf, tenant_id: TenantId) -> Upload:
    with services.database.read() as session:
        row = UploadRepository(session, tenant_id).get(upload_id)
    there = [] if row.completed_at is not None else services.objects.parts.list(parts_of(row))
    return shown(row, request, services, there)


@router.put(
    "/uploads/{upload_id}/parts/{number}",
    summary="Send a part, again if need be",
    responses=problems(401, 403, 404, 409),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_part(
    upload_id: str, number: int, request: Request, response: Response, services: ServicesOf, tenant_id: TenantId
) -> UploadPart:
    upload = await run_in_threadpool(_open_upload, services, tenant_id, upload_id)
    if not 1 <= number <= upload.part_count:
        raise NotFound("part", f"{number} of {upload.part_count}")
    size = upload.size_of(number)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) != size:
        raise _wrong_size(number, size, f"{int(announced)} were announced")
    writer = await run_in_threadpool(services.objects.parts.write, upload, number)
    try:
        part = await _receive(request, writer, number, size)
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(writer.abort)
    response.headers["ETag"] = part.etag
    return UploadPart(number=number, size=size, url=part_url(request, upload_id, number), etag=part.etag)


def _open_upload(services: Services, tenant_id: str, upload_id: str) -> PartUpload:
    with services.database.read() as session:
        row = UploadRepository(session, tenant_id).get(upload_id)
    if row.completed_at is not None:
        raise PartsGone()
    return parts_of(row)


async def _receive(request: Request, writer: PartWriter, number: int, size: int) -> StoredPart:
    received, pieces, held = 0, [], 0
    async with Behind() as behind:
        async for piece in request.stream():
            received, held = received + len(piece), held + len(piece)
            if received > size:
                raise _wrong_size(number, size, "more arrived")
            pieces.append(piece)
            if held >= WRITE_BYTES:
                await behind.call(writer.write, b"".join(pieces))
                pieces, held = [], 0
        if received != size:
            raise _wrong_size(number, size, f"{received} arrived")
        await behind.call(writer.write, b"".join(pieces))
    return await run_in_threadpool(writer.commit)


def _wrong_size(number: int, size: int, what: str) -> Problem:
    return Problem("wrong_part_size", f"Part {number} has {size} bytes, and {what}.")


@router.post(
    "/uploads/{upload_id}/complete",
    status_code=201,
    summary="The parts are there: make the model or dataset",
    description="The file is read for its digest where that was not possible before, so a large one may take seconds. Asking again gives the same answer.",
    responses=problems(401, 403, 404, 409, 415),
    openapi_extra=_json_body("UploadCompletion", required=False),
)
async def complete_upload(
    upload_id: str, request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> resources.Model | resources.Dataset:
    empty = request.headers.get("content-length", "") == "0" or "content-type" not in request.headers
    value = None if empty else await _json(request)
    body = UploadCompletion() if empty else validate(_completion, value)
    await once.begin(once.fingerprint(value))
    # What an upload becomes has its id since it was announced, so completing it twice makes one resource, key or not.
    resource = await run_in_threadpool(complete, services, tenant_id, upload_id, body.parts)
    services.ring()
    headers = {"Location": f"{resources.base_url(request)}/v1/{resource.object}s/{resource.id}"}

    def keep() -> None:
        with services.database.transaction() as session:
            once.settle(session)
            once.keep(session, 201, resource, headers)

    if once.key is not None:
        await run_in_threadpool(keep)
    response.headers.update(headers)
    return resource


@router.delete(
    "/uploads/{upload_id}",
    status_code=204,
    summary="Give an upload up",
    responses=problems(401, 403, 404, 409),
)
def delete_upload(upload_id: str, services: ServicesOf, tenant_id: TenantId) -> None:
    with services.database.transaction() as session:
        row = UploadRepository(session, tenant_id).delete(upload_id)
    services.objects.parts.abort(parts_of(row))


async def _json(request: Request) -> Any:
    if media_type(request) != "application/json":
        raise unsupported_media_type(request, "application/json")
    return await read_json(request)
