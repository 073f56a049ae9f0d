"""Jobs: create from JSON or from one multipart form, poll, list, cancel, retry, delete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import TypeAdapter
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import resources
from api.content import matches
from api.datasets import dataset_columns
from api.dependencies import Services, ServicesOf, TenantId, paged
from api.forms import (
    DATASET_FIELDS,
    DATASET_PROPERTIES,
    MODEL_FIELDS,
    MODEL_FILES,
    MODEL_PROPERTIES,
    SPEC_FIELD,
    SPEC_PROPERTY,
    check_fields_used,
    form_schema,
)
from api.idempotency import Attempt, Once
from api.models import model_columns
from api.polling import MOST_WAIT_S, job_etag, job_headers, preferred_wait
from api.problems import Problem, problems
from api.requests import media_type, read_json, unsupported_media_type
from api.uploads import FileRule, Form, received_form
from api.validation import check_architecture, check_options, has_gpus, validate
from api.watching import unless_gone
from api.webhooks import check_url
from store.contract import JobOptions, JobRequest, JobStatus
from store.datasets import DatasetRepository
from store.identifiers import new_id
from store.jobs import JobRepository
from store.layout import dataset_key, model_key
from store.models import ModelRepository
from store.tables import Job

router = APIRouter(tags=["jobs"])

PageOfJobs = paged("job", "status", prefixes=("label.",), repeatable=("status",))

_job_request: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
_FORM = form_schema(
    files={"model": MODEL_FILES, "dataset": "Images with labels."},
    required=["model", "spec"],
    properties={**SPEC_PROPERTY, **MODEL_PROPERTIES, **DATASET_PROPERTIES},
)
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}, **_FORM}


@router.post(
    "/jobs",
    status_code=201,
    summary="Compress a model",
    description="From JSON that names an uploaded model, or from one form with the model itself (and its dataset).",
    responses=problems(401, 403, 404, 409, 413, 415, 507),
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def create_job(
    request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> resources.Job:
    base_url = resources.base_url(request)
    match media_type(request):
        case "application/json":
            job, headers = await _from_json(request, services, tenant_id, once, base_url)
        case "multipart/form-data":
            job, headers = await _from_form(request, services, tenant_id, once, base_url)
        case _:
            raise unsupported_media_type(request, "application/json", "multipart/form-data")
    services.ring()
    response.headers.update(headers)
    return job


_Seen = tuple[Job, dict[str, str]]
_Created = tuple[resources.Job, dict[str, str]]


async def _from_json(request: Request, services: Services, tenant_id: str, once: Attempt, base_url: str) -> _Created:
    value = await read_json(request)
    body = validate(_job_request, value)
    _check_webhook(services, body, "")
    await once.begin(once.fingerprint(value))

    def store() -> _Created:
        catalogue = services.catalogue()
        check_options(body, catalogue, dataset=body.dataset is not None)
        with services.database.transaction() as session:
            once.settle(session)
            services.quotas.require_job(session, tenant_id, body.device, gpus=has_gpus(catalogue))
            return _created(session, once, JobRepository(session, tenant_id).create(body), base_url)

    return await run_in_threadpool(store)


async def _from_form(request: Request, services: Services, tenant_id: str, once: Attempt, base_url: str) -> _Created:
    await once.begin(None)
    catalogue = await run_in_threadpool(services.catalogue)
    model_id, dataset_id = new_id("mdl"), new_id("ds")
    async with received_form(
        request,
        services.objects,
        fields={**SPEC_FIELD, **MODEL_FIELDS, **DATASET_FIELDS},
        files={
            "model": FileRule(model_key(tenant_id, model_id), is_model=True),
            "dataset": FileRule(dataset_key(tenant_id, dataset_id), required=False),
        },
        max_file_bytes=services.settings.max_upload_bytes,
    ) as form:
        options = _options(form)
        check_options(options, catalogue, dataset=bool(options.dataset) or "dataset" in form.files, at="/spec")
        _check_webhook(services, options, "/spec")
        check_architecture(form.fields.get("architecture"), form.fields.get("architecture_args"), catalogue)

        def store() -> _Created:
            files = _file_columns(form, model_id, dataset_id)
            with services.database.transaction() as session:
                once.settle(session, once.fingerprint(form.contents()))
                services.quotas.require_bytes(session, tenant_id, sum(file.size_bytes for file in form.files.values()))
                services.quotas.require_job(session, tenant_id, options.device, gpus=has_gpus(catalogue))
                return _created(session, once, _store_form(session, tenant_id, files, options), base_url)

        return await run_in_threadpool(store)


def _check_webhook(services: Services, options: JobOptions, at: str) -> None:
    if options.webhook is not None:
        check_url(options.webhook.url, services.settings, f"{at}/webhook/url")


def _options(form: Form) -> JobOptions:
    if "spec" not in form.fields:
        raise Problem.at("/spec", "required", "The part 'spec' is missing: the job as JSON, with at least a budget.")
    options: JobOptions = form.fields["spec"]
    if options.dataset is not None and "dataset" in form.files:
        raise Problem.at("/spec/dataset", "conflict", "Name a dataset in `spec` or upload one in `dataset`, not both.")
    check_fields_used(form.fields, form.files.get("dataset"))
    return options


_FileColumns = tuple[dict[str, Any], dict[str, Any] | None]


def _file_columns(form: Form, model_id: str, dataset_id: str) -> _FileColumns:
    """Make the files visible in the object store; returns what the rows of model and dataset say."""
    model = model_columns(model_id, form.files["model"], form.fields)
    dataset = dataset_columns(dataset_id, form.files["dataset"], form.fields) if "dataset" in form.files else None
    return model, dataset


def _store_form(session: Session, tenant_id: str, files: _FileColumns, options: JobOptions) -> Job:
    """Model, dataset and job in one transaction: all of them, or none."""
    model, dataset = files
    ModelRepository(session, tenant_id).create(**model)
    if dataset is not None:
        DatasetRepository(session, tenant_id).create(**dataset)
        options = options.model_copy(update={"dataset": dataset["id"]})
    request = JobRequest.model_validate({**options.model_dump(mode="json"), "model": model["id"]})
    return JobRepository(session, tenant_id).create(request)


def _created(session: Session, once: Attempt, job: Job, base_url: str) -> _Created:
    """What the client is told of a new job, kept under its idempotency key."""
    resource = resources.Job.of(job, base_url, None)
    headers = {**job_headers(job, job.created_at), "Location": resource.links.self}
    once.keep(session, 201, resource, headers)
    return resource, headers


def _label_filters(request: Request) -> dict[str, str]:
    return {
        name.removeprefix("label."): value for name, value in request.query_params.items() if name.startswith("label.")
    }


@router.get(
    "/jobs",
    summary="List jobs",
    description=(
        "`status` may be repeated: jobs with any of them. `label.KEY=VALUE` may be given for several keys: jobs that carry "
        "all of them. A job has one value for a key, so the same key twice is refused."
    ),
    response_model=resources.JobList,
    responses=problems(401),
)
def list_jobs(
    request: Request,
    services: ServicesOf,
    tenant_id: TenantId,
    page: PageOfJobs,
    labels: Annotated[dict[str, str], Depends(_label_filters)],
    status: Annotated[list[JobStatus] | None, Query()] = None,
) -> Any:
    with services.database.read() as session:
        found = JobRepository(session, tenant_id).list(status, labels, *page)
    return resources.job_page(found, resources.base_url(request), services.settings.artifacts_kept)


@router.get(
    "/jobs/{job_id}",
    summary="Poll a job",
    description=(
        "Send the `ETag` back as `If-None-Match`, and wait as long as `Retry-After` says; or send `Prefer: wait=N` (seconds, "
        f"at most {MOST_WAIT_S}), and the answer comes when the job has ended, or after that time."
    ),
    response_model=resources.Job,
    responses={**problems(401, 404), 304: {"description": "Nothing has changed"}},
)
async def get_job(
    job_id: str,
    request: Request,
    response: Response,
    services: ServicesOf,
    tenant_id: TenantId,
    prefer: Annotated[str | None, Header(description=f"`wait=N`, 0 to {MOST_WAIT_S} (RFC 7240).")] = None,
) -> Any:
    def look() -> _Seen:
        with services.database.read() as session:
            job = JobRepository(session, tenant_id).get(job_id)
            return job, job_headers(job, services.database.now(session))

    wait_s, known = preferred_wait(prefer), request.headers.get("if-none-match")
    job, headers = await run_in_threadpool(look)
    if wait_s is not None:
        until_end = partial(_until_end, job, headers, look, services, wait_s)
        job, headers = await unless_gone(request, until_end, (job, headers))
        headers["Preference-Applied"] = f"wait={wait_s}"
    if matches(known, job_etag(job)):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return resources.Job.of(job, resources.base_url(request), services.settings.artifacts_kept)


async def _until_end(
    job: Job, headers: dict[str, str], look: Callable[[], _Seen], services: Services, wait_s: int
) -> _Seen:
    deadline = anyio.current_time() + wait_s
    while not job.status.terminal and (left_s := deadline - anyio.current_time()) > 0:
        if not await services.watcher.changed(job.id, job.version, left_s):
            break
        job, headers = await run_in_threadpool(look)
    return job, headers


@router.post(
    "/jobs/{job_id}/cancel",
    summary="Cancel a job",
    description="A running job is `cancelling` until its worker has stopped. Asking again changes nothing.",
    responses=problems(401, 403, 404, 409),
)
def cancel_job(
    job_id: str, request: Request, response: Response, services: ServicesOf, tenant_id: TenantId
) -> resources.Job:
    with services.database.transaction() as session:
        job = JobRepository(session, tenant_id).request_cancel(job_id)
        headers = job_headers(job, services.database.now(session))
    services.ring()
    response.headers.update(headers)
    return resources.Job.of(job, resources.base_url(request), services.settings.artifacts_kept)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=201,
    summary="Run a finished job again, as a new one",
    responses=problems(401, 403, 404, 409, 507),
)
async def retry_job(
    job_id: str, request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> resources.Job:
    await once.begin()
    base_url = resources.base_url(request)

    def store() -> _Created:
        gpus = has_gpus(services.catalogue())
        with services.database.transaction() as session:
            once.settle(session)
            jobs = JobRepository(session, tenant_id)
            services.quotas.require_job(session, tenant_id, jobs.get(job_id).request["device"], gpus=gpus)
            return _created(session, once, jobs.retry(job_id), base_url)

    job, headers = await run_in_threadpool(store)
    services.ring()
    response.headers.update(headers)
    return job


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Delete a finished job and its artifacts",
    responses=problems(401, 403, 404, 409),
)
def delete_job(job_id: str, services: ServicesOf, tenant_id: TenantId) -> None:
    with services.database.transaction() as session:
        prefixes = JobRepository(session, tenant_id).delete(job_id)
    services.remove_objects(prefixes)
