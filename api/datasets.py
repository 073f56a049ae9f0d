"""Datasets: upload, look, delete. As with models, a worker finds out what is in the file."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from api import resources
from api.content import FILE_RESPONSES, uploaded_file
from api.dependencies import ServicesOf, TenantId, paged
from api.forms import DATASET_FIELDS, DATASET_PROPERTIES, NAME_FIELD, NAME_PROPERTY, form_schema, stem
from api.idempotency import Once
from api.polling import retry_after_inspection
from api.problems import problems
from api.requests import require_multipart
from api.uploads import FileRule, ReceivedFile, received_form
from store.datasets import DatasetRepository
from store.identifiers import new_id
from store.layout import dataset_key

router = APIRouter(tags=["datasets"])

PageOfDatasets = paged("ds")

_FORM = form_schema(
    files={
        "file": "Images with labels: .npz, .parquet, or a .tar, .tar.gz or .zip of class folders or Parquet shards."
    },
    required=["file"],
    properties={**DATASET_PROPERTIES, **NAME_PROPERTY},
)


@router.post(
    "/datasets",
    status_code=201,
    summary="Upload a dataset",
    responses=problems(401, 403, 409, 413, 415, 507),
    openapi_extra={"requestBody": {"required": True, "content": _FORM}},
)
async def create_dataset(
    request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> resources.Dataset:
    require_multipart(request)
    await once.begin(None)
    dataset_id = new_id("ds")
    async with received_form(
        request,
        services.objects,
        fields={**DATASET_FIELDS, **NAME_FIELD},
        files={"file": FileRule(dataset_key(tenant_id, dataset_id))},
        max_file_bytes=services.settings.max_upload_bytes,
    ) as form:
        response.headers["Location"] = f"{resources.base_url(request)}/v1/datasets/{dataset_id}"
        headers = {"Location": response.headers["Location"]}

        def store() -> resources.Dataset:
            columns = dataset_columns(dataset_id, form.files["file"], form.fields)
            with services.database.transaction() as session:
                once.settle(session, once.fingerprint(form.contents()))
                services.quotas.require_bytes(session, tenant_id, columns["size_bytes"])
                resource = resources.Dataset.of(DatasetRepository(session, tenant_id).create(**columns))
                once.keep(session, 201, resource, headers)
                return resource

        resource = await run_in_threadpool(store)
    services.ring()
    return resource


def dataset_columns(dataset_id: str, file: ReceivedFile, fields: dict[str, Any]) -> dict[str, Any]:
    """Make the received file visible in the object store; returns what its row says."""
    stored = file.commit()
    normalization, convert = fields.get("normalization"), fields.get("convert")
    return {
        "id": dataset_id,
        "filename": file.filename,
        "name": fields.get("name") or stem(file.filename),
        "object_key": stored.key,
        "size_bytes": stored.size,
        "sha256": stored.sha256,
        "normalization": None if normalization is None else normalization.model_dump(),
        "scale": fields.get("scale"),
        "convert": None if convert is None else convert.model_dump(exclude_none=True),
    }


@router.get(
    "/datasets",
    summary="List datasets",
    responses=problems(401),
)
def list_datasets(services: ServicesOf, tenant_id: TenantId, page: PageOfDatasets) -> resources.DatasetList:
    with services.database.read() as session:
        found = DatasetRepository(session, tenant_id).list(*page)
    return resources.DatasetList.of(found, resources.Dataset.of)


@router.get("/datasets/{dataset_id}", summary="Look at a dataset", responses=problems(401, 404))
def get_dataset(dataset_id: str, response: Response, services: ServicesOf, tenant_id: TenantId) -> resources.Dataset:
    with services.database.read() as session:
        row = DatasetRepository(session, tenant_id).get(dataset_id)
    response.headers.update(retry_after_inspection(row.status))
    return resources.Dataset.of(row)


@router.get(
    "/datasets/{dataset_id}/content",
    summary="Fetch the uploaded file",
    response_class=Response,
    responses=FILE_RESPONSES,
)
def get_dataset_content(dataset_id: str, request: Request, services: ServicesOf, tenant_id: TenantId) -> Response:
    with services.database.read() as session:
        row = DatasetRepository(session, tenant_id).get(dataset_id)
    return uploaded_file(request, services.objects, row)


@router.delete(
    "/datasets/{dataset_id}",
    status_code=204,
    summary="Delete a dataset that no live job uses",
    responses=problems(401, 403, 404, 409),
)
def delete_dataset(dataset_id: str, services: ServicesOf, tenant_id: TenantId) -> None:
    with services.database.transaction() as session:
        keys = DatasetRepository(session, tenant_id).delete(dataset_id)
    services.remove_objects(keys)
