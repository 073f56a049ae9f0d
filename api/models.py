"""Models: upload, look, fetch, delete. Inspection is a worker's business, so a new model is `inspecting`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api import resources
from api.content import FILE_RESPONSES, uploaded_file
from api.dependencies import ServicesOf, TenantId, paged
from api.forms import MODEL_FIELDS, MODEL_FILES, MODEL_PROPERTIES, NAME_FIELD, NAME_PROPERTY, form_schema, stem
from api.idempotency import Once
from api.polling import retry_after_inspection
from api.problems import problems
from api.requests import require_multipart
from api.uploads import FileRule, ReceivedFile, received_form
from api.validation import check_architecture
from store.identifiers import new_id
from store.layout import model_key
from store.models import ModelRepository

router = APIRouter(tags=["models"])

PageOfModels = paged("mdl")

_FORM = form_schema(
    files={"file": MODEL_FILES},
    required=["file"],
    properties={**MODEL_PROPERTIES, **NAME_PROPERTY},
)


@router.post(
    "/models",
    status_code=201,
    summary="Upload a model",
    responses=problems(401, 403, 409, 413, 415, 507),
    openapi_extra={"requestBody": {"required": True, "content": _FORM}},
)
async def create_model(
    request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> resources.Model:
    require_multipart(request)
    await once.begin(None)
    catalogue = await run_in_threadpool(services.catalogue)
    model_id = new_id("mdl")
    async with received_form(
        request,
        services.objects,
        fields={**MODEL_FIELDS, **NAME_FIELD},
        files={"file": FileRule(model_key(tenant_id, model_id), is_model=True)},
        max_file_bytes=services.settings.max_upload_bytes,
    ) as form:
        check_architecture(form.fields.get("architecture"), form.fields.get("architecture_args"), catalogue)
        response.headers["Location"] = f"{resources.base_url(request)}/v1/models/{model_id}"
        headers = {"Location": response.headers["Location"]}

        def store() -> resources.Model:
            columns = model_columns(model_id, form.files["file"], form.fields)
            with services.database.transaction() as session:
                once.settle(session, once.fingerprint(form.contents()))
                services.quotas.require_bytes(session, tenant_id, columns["size_bytes"])
                resource = resources.Model.of(ModelRepository(session, tenant_id).create(**columns))
                once.keep(session, 201, resource, headers)
                return resource

        resource = await run_in_threadpool(store)
    services.ring()
    return resource


def model_columns(model_id: str, file: ReceivedFile, fields: dict[str, Any]) -> dict[str, Any]:
    """Make the received file visible in the object store; returns what its row says."""
    stored = file.commit()
    return {
        "id": model_id,
        "filename": file.filename,
        "name": fields.get("name") or stem(file.filename),
        "object_key": stored.key,
        "size_bytes": stored.size,
        "sha256": stored.sha256,
        "architecture": fields.get("architecture"),
        "architecture_args": fields.get("architecture_args"),
        "input_shape": fields.get("input_shape"),
    }


@router.get(
    "/models",
    summary="List models",
    responses=problems(401),
)
def list_models(services: ServicesOf, tenant_id: TenantId, page: PageOfModels) -> resources.ModelList:
    with services.database.read() as session:
        found = ModelRepository(session, tenant_id).list(*page)
    return resources.ModelList.of(found, resources.Model.of)


@router.get("/models/{model_id}", summary="Look at a model", responses=problems(401, 404))
def get_model(model_id: str, response: Response, services: ServicesOf, tenant_id: TenantId) -> resources.Model:
    with services.database.read() as session:
        row = ModelRepository(session, tenant_id).get(model_id)
    response.headers.update(retry_after_inspection(row.status))
    return resources.Model.of(row)


@router.get(
    "/models/{model_id}/content",
    summary="Fetch the uploaded file",
    response_class=Response,
    responses=FILE_RESPONSES,
)
def get_model_content(model_id: str, request: Request, services: ServicesOf, tenant_id: TenantId) -> Response:
    with services.database.read() as session:
        row = ModelRepository(session, tenant_id).get(model_id)
    return uploaded_file(request, services.objects, row)


@router.delete(
    "/models/{model_id}",
    status_code=204,
    summary="Delete a model that no live job uses",
    responses=problems(401, 403, 404, 409),
)
def delete_model(model_id: str, services: ServicesOf, tenant_id: TenantId) -> None:
    with services.database.transaction() as session:
        keys = ModelRepository(session, tenant_id).delete(model_id)
    services.remove_objects(keys)
