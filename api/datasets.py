"""Datasets: upload, look, delete. As with models, a worker finds out what is in the file."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from api import resources
from api.dependencies import PageLimit, PageOrder, Services, ServicesOf, TenantId, known_query, page_after
from api.forms import DATASET_FIELDS, DATASET_PROPERTIES, NAME_FIELD, NAME_PROPERTY, form_schema, stem
from api.polling import retry_after_inspection
from api.problems import problems
from api.requests import no_idempotency_key, require_multipart
from api.uploads import FileRule, ReceivedFile, received_form
from store.datasets import DatasetRepository
from store.identifiers import new_id
from store.layout import dataset_key
from store.pages import DEFAULT_LIMIT
from store.tables import Dataset

router = APIRouter(tags=["datasets"])

AfterId = page_after("ds")

_FORM = form_schema(
    files={"file": "Images with labels: .npz, or a .tar of Parquet shards."},
    required=["file"],
    properties={**DATASET_PROPERTIES, **NAME_PROPERTY},
)


@router.post(
    "/datasets",
    status_code=201,
    dependencies=[Depends(no_idempotency_key)],
    summary="Upload a dataset",
    responses=problems(401, 403, 413, 415),
    openapi_extra={"requestBody": {"required": True, "content": _FORM}},
)
async def create_dataset(
    request: Request, response: Response, services: ServicesOf, tenant_id: TenantId
) -> resources.Dataset:
    require_multipart(request)
    dataset_id = new_id("ds")
    async with received_form(
        request,
        services.objects,
        fields={**DATASET_FIELDS, **NAME_FIELD},
        files={"file": FileRule(dataset_key(tenant_id, dataset_id))},
        max_file_bytes=services.settings.max_upload_bytes,
    ) as form:
        row = await run_in_threadpool(_store, services, tenant_id, dataset_id, form.files["file"], form.fields)
    services.ring()
    response.headers["Location"] = f"{resources.base_url(request)}/v1/datasets/{row.id}"
    return resources.Dataset.of(row)


def _store(services: Services, tenant_id: str, dataset_id: str, file: ReceivedFile, fields: dict[str, Any]) -> Dataset:
    columns = dataset_columns(dataset_id, file, fields)
    with services.database.transaction() as session:
        return DatasetRepository(session, tenant_id).create(**columns)


def dataset_columns(dataset_id: str, file: ReceivedFile, fields: dict[str, Any]) -> dict[str, Any]:
    """Make the received file visible in the object store; returns what its row says."""
    stored = file.commit()
    normalization = fields.get("normalization")
    return {
        "id": dataset_id,
        "filename": file.filename,
        "name": fields.get("name") or stem(file.filename),
        "object_key": stored.key,
        "size_bytes": stored.size,
        "sha256": stored.sha256,
        "normalization": None if normalization is None else normalization.model_dump(),
        "scale": fields.get("scale"),
    }


@router.get(
    "/datasets",
    summary="List datasets",
    responses=problems(401),
    dependencies=[Depends(known_query("limit", "after", "order"))],
)
def list_datasets(
    services: ServicesOf,
    tenant_id: TenantId,
    limit: PageLimit = DEFAULT_LIMIT,
    after: AfterId = None,
    order: PageOrder = "desc",
) -> resources.DatasetList:
    with services.database.read() as session:
        page = DatasetRepository(session, tenant_id).list(limit, after, order)
    return resources.DatasetList(
        data=[resources.Dataset.of(row) for row in page.rows], has_more=page.has_more, next=page.next
    )


@router.get("/datasets/{dataset_id}", summary="Look at a dataset", responses=problems(401, 404))
def get_dataset(dataset_id: str, response: Response, services: ServicesOf, tenant_id: TenantId) -> resources.Dataset:
    with services.database.read() as session:
        row = DatasetRepository(session, tenant_id).get(dataset_id)
    response.headers.update(retry_after_inspection(row.status))
    return resources.Dataset.of(row)


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
