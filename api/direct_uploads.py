"""Uploads in parts: announce a file, send its parts to the URLs that come back, complete it.

    POST /uploads → PUT each part → POST …/complete → the Model or Dataset

The parts go straight to the object store where clients can reach it, and through us where they cannot; a client need
not know which. GET tells which parts are there, with fresh URLs for the others, so an interrupted upload goes on.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field, TypeAdapter
from starlette.concurrency import run_in_threadpool

from api import resources
from api.behind import Behind
from api.dependencies import PageAfter, PageLimit, PageOrder, Services, ServicesOf, TenantId, known_query
from api.forms import stem
from api.idempotency import Attempt, Once
from api.problems import Problem, problems
from api.requests import media_type, read_json, unsupported_media_type
from api.upload_requests import SentPart, UploadCompletion, UploadRequest
from api.uploads import WRITE_BYTES, check_head, display_name, over_limit
from api.validation import check_architecture, validate
from store.datasets import DatasetRepository
from store.errors import NotFound, PartsGone
from store.identifiers import new_id
from store.layout import dataset_key, model_key
from store.models import ModelRepository
from store.pages import DEFAULT_LIMIT
from store.parts import PartUpload, PartWriter, StoredPart
from store.tables import Upload as UploadRow
from store.uploads import Purpose, UploadRepository, parts_of

router = APIRouter(tags=["uploads"])

MOST_PARTS = 1000
_MIB = 1 << 20
_HEAD_BYTES = 16
_PREFIX: dict[Purpose, Literal["mdl", "ds"]] = {"model": "mdl", "dataset": "ds"}

_upload_request: TypeAdapter[UploadRequest] = TypeAdapter(UploadRequest)
_completion: TypeAdapter[UploadCompletion] = TypeAdapter(UploadCompletion)


def _json_body(schema: str, *, required: bool = True) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": required, "content": content}}


class UploadPart(BaseModel):
    """PUT `size` bytes to `url`; `etag` is that of the part once it is there."""

    number: int
    size: int
    url: str
    etag: str | None = None


class UploadSummary(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    status: Literal["open", "completed"]
    purpose: Literal["model", "dataset"]
    filename: str
    size: int
    sha256: str | None
    part_size: int
    request: dict[str, Any] = Field(description="The other fields that it was announced with.")
    resource: str | None = Field(description="The id of the model or dataset that it has become.")
    complete_url: str
    created_at: datetime
    expires_at: datetime


class Upload(UploadSummary):
    parts: list[UploadPart] = Field(
        description="Empty once it is completed. The URLs work for a while; GET makes new ones."
    )


class UploadList(BaseModel):
    object: Literal["list"] = "list"
    data: list[UploadSummary]
    has_more: bool
    next: str | None


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
    response.headers["Location"] = _url(request, upload.id)
    return upload


def _announce(body: UploadRequest, request: Request, services: Services, tenant_id: str, once: Attempt) -> Upload:
    foreign = body.foreign_field()
    if foreign is not None:
        raise Problem.at(f"/{foreign}", "not_for_this", f"{foreign!r} says nothing of a {body.purpose}.")
    limit = services.settings.max_upload_bytes
    if body.size > limit:
        raise over_limit(limit, "size")
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
            upload = _shown(row, request, services, [])
            once.keep(session, 201, upload, {"Location": _url(request, upload.id)})
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
    dependencies=[Depends(known_query("sha256", "limit", "after", "order"))],
)
def list_uploads(
    request: Request,
    services: ServicesOf,
    tenant_id: TenantId,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="Announced for this file.")] = None,
    limit: PageLimit = DEFAULT_LIMIT,
    after: PageAfter = None,
    order: PageOrder = "desc",
) -> UploadList:
    with services.database.read() as session:
        page = UploadRepository(session, tenant_id).list(sha256, limit, after, order)
    data = [UploadSummary(**_summary(row, request)) for row in page.rows]
    return UploadList(data=data, has_more=page.has_more, next=page.next)


@router.get(
    "/uploads/{upload_id}", summary="Which parts are there, and URLs for the others", responses=problems(401, 404)
)
def get_upload(upload_id: str, request: Request, services: ServicesOf, tenant_id: TenantId) -> Upload:
    with services.database.read() as session:
        row = UploadRepository(session, tenant_id).get(upload_id)
    there = [] if row.completed_at is not None else services.objects.parts.list(parts_of(row))
    return _shown(row, request, services, there)


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
    return UploadPart(number=number, size=size, url=_part_url(request, upload_id, number), etag=part.etag)


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
    description="Reads the file once for its digest, so a large one takes seconds. Asking again gives the same answer.",
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
    resource = await run_in_threadpool(_complete, services, tenant_id, upload_id, body.parts)
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


def _complete(
    services: Services, tenant_id: str, upload_id: str, sent: list[SentPart] | None
) -> resources.Model | resources.Dataset:
    with services.database.read() as session:
        row = UploadRepository(session, tenant_id).get(upload_id)
    if row.completed_at is not None:
        return _resource(services, tenant_id, row)
    upload = parts_of(row)
    if sent is not None:
        _check_sent(services, upload, sent)
    assembled = services.objects.parts.complete(upload)
    try:
        _check_file(services, row, assembled.sha256)
        with services.database.transaction() as session:
            uploads = UploadRepository(session, tenant_id)
            locked = uploads.lock(upload_id)
            if locked.completed_at is None:
                _register(
                    ModelRepository(session, tenant_id), DatasetRepository(session, tenant_id), row, assembled.sha256
                )
                uploads.complete(locked)
    except Problem:
        # Not what was announced, and never will be.
        _forget(services, tenant_id, upload_id)
        services.objects.delete(upload.key)
        raise
    except NotFound:
        # Given up in the meantime, or completed by another call and then forgotten.
        try:
            return _resource(services, tenant_id, row)
        except NotFound:
            services.objects.delete(upload.key)
        raise
    return _resource(services, tenant_id, row)


def _check_sent(services: Services, upload: PartUpload, sent: list[SentPart]) -> None:
    """What the client believes to have sent must be what is there; a part sent twice may not be."""
    try:
        there = {part.number: part.etag.strip('"') for part in services.objects.parts.list(upload)}
    except PartsGone:
        return  # an earlier call has put them together
    for index, part in enumerate(sent):
        if part.number > upload.part_count:
            raise Problem.at(
                f"/parts/{index}/number", "invalid", f"The upload has {upload.part_count} parts, no part {part.number}."
            )
        if part.number in there and part.etag.strip('"') != there[part.number]:
            raise Problem.at(
                f"/parts/{index}/etag",
                "mismatch",
                f"Part {part.number} is there with the etag {there[part.number]}: it was sent again. Send it once more.",
            )
    unnamed = sorted(set(range(1, upload.part_count + 1)) - {part.number for part in sent})
    if unnamed:
        raise Problem.at("/parts", "incomplete", f"Name all {upload.part_count} parts: {unnamed[0]} is not among them.")


def _check_file(services: Services, row: UploadRow, sha256: str) -> None:
    if row.sha256 is not None and sha256 != row.sha256:
        raise Problem(
            "digest_mismatch",
            f"The file has sha256 {sha256}, and {row.sha256} was announced. The upload is forgotten; start a new one.",
        )
    with services.objects.open_reader(row.object_key, 0, _HEAD_BYTES) as reader:
        head = reader.read()
    check_head(row.filename, row.size_bytes, head, "/filename", is_model=row.purpose == "model")


def _register(models: ModelRepository, datasets: DatasetRepository, row: UploadRow, sha256: str) -> None:
    fields = dict(row.fields)
    file = {
        "id": row.resource_id,
        "filename": row.filename,
        "name": fields.pop("name", None) or stem(row.filename),
        "object_key": row.object_key,
        "size_bytes": row.size_bytes,
        "sha256": sha256,
    }
    (models if row.purpose == "model" else datasets).create(**file, **fields)


def _resource(services: Services, tenant_id: str, row: UploadRow) -> resources.Model | resources.Dataset:
    with services.database.read() as session:
        if row.purpose == "model":
            return resources.Model.of(ModelRepository(session, tenant_id).get(row.resource_id))
        return resources.Dataset.of(DatasetRepository(session, tenant_id).get(row.resource_id))


def _forget(services: Services, tenant_id: str, upload_id: str) -> None:
    try:
        with services.database.transaction() as session:
            UploadRepository(session, tenant_id).delete(upload_id)
    except NotFound:
        return


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


def _summary(row: UploadRow, request: Request) -> dict[str, Any]:
    return {
        "id": row.id,
        "status": "open" if row.completed_at is None else "completed",
        "purpose": row.purpose,
        "filename": row.filename,
        "size": row.size_bytes,
        "sha256": row.sha256,
        "part_size": row.part_size_bytes,
        "request": row.fields,
        "resource": None if row.completed_at is None else row.resource_id,
        "complete_url": f"{_url(request, row.id)}/complete",
        "created_at": row.created_at,
        "expires_at": row.expires_at,
    }


def _shown(row: UploadRow, request: Request, services: Services, there: list[StoredPart] | Any) -> Upload:
    upload, etags = parts_of(row), {part.number: part.etag for part in there}
    numbers = () if row.completed_at is not None else range(1, upload.part_count + 1)
    parts = [
        UploadPart(
            number=number,
            size=upload.size_of(number),
            url=services.objects.parts.url(upload, number) or _part_url(request, row.id, number),
            etag=etags.get(number),
        )
        for number in numbers
    ]
    return Upload(**_summary(row, request), parts=parts)


def _url(request: Request, upload_id: str) -> str:
    return f"{resources.base_url(request)}/v1/uploads/{upload_id}"


def _part_url(request: Request, upload_id: str, number: int) -> str:
    return f"{_url(request, upload_id)}/parts/{number}"
