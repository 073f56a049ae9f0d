"""What clients read: models, datasets, jobs, events, artifacts, and lists of them, built from the store's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from api.problems import Problem
from store import tables
from store.contract import (
    ArchitectureInfo,
    ArtifactInfo,
    ClassCounts,
    ConstraintResult,
    ErrorInfo,
    InspectionStatus,
    JobProgress,
    JobResult,
    JobStatus,
    MethodInfo,
    ModelProfile,
    PlannedLayer,
    PlanStatus,
)
from store.pages import Page, coerced

Row = TypeVar("Row")
Shape = list[int] | dict[str, list[int]]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    name: str
    filename: str
    format: str | None
    architecture: str | None
    architecture_args: dict[str, Any]
    input_shape: Shape | None
    size_bytes: int
    sha256: str
    status: InspectionStatus
    profile: ModelProfile | None
    error: ErrorInfo | None
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Model) -> Self:
        return cls.model_validate(row, from_attributes=True)


class Dataset(BaseModel):
    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    filename: str
    status: InspectionStatus
    format: str | None
    classes: int | None
    class_names: list[str] | None = Field(description="By label, where the file says them; up to 1,000.")
    splits: dict[str, int] | None = Field(description="Number of examples in train, val and test.")
    class_counts: dict[str, ClassCounts] | None = Field(description="Per split, how many examples its classes have.")
    image_shape: list[int] | None
    mean: list[float] | None
    std: list[float] | None
    normalization: dict[str, list[float]] | None
    scale: float | None
    convert: dict[str, Any] | None
    size_bytes: int
    sha256: str
    error: ErrorInfo | None
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Dataset) -> Self:
        return cls.model_validate(row, from_attributes=True)


class Artifact(BaseModel):
    object: Literal["artifact"] = "artifact"
    name: str
    media_type: str
    size: int
    sha256: str
    url: str

    @classmethod
    def of(cls, row: tables.Artifact | ArtifactInfo, job_id: str, base_url: str) -> Self:
        return cls(
            name=row.name,
            media_type=row.media_type,
            size=row.size,
            sha256=row.sha256,
            url=f"{base_url}/v1/jobs/{job_id}/artifacts/{quote(row.name)}",
        )


class Event(BaseModel):
    object: Literal["event"] = "event"
    seq: int
    type: str
    data: dict[str, Any]
    at: datetime

    @classmethod
    def of(cls, row: tables.JobEvent) -> Self:
        return cls.model_validate(row, from_attributes=True)


class JobLinks(BaseModel):
    self: str
    events: str
    cancel: str
    artifacts: str
    bundle: str


class FinishedJob(JobResult):
    """A job's result, its artifacts with the URLs that fetch them."""

    artifacts: list[Artifact]


class ResumedFrom(BaseModel):
    """The checkpoint that a job went on from: the attempt that left it, and when; in the middle of which step (`number` is
    how far inside it), or after which."""

    attempt: int
    at: datetime
    step: str
    number: int | None


class Job(BaseModel):
    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    stage: str | None
    attempt: int
    device: str | None = Field(
        default=None, description="`cpu` or `gpu`: what the worker has that runs it, or ran it last."
    )
    resumed_from: ResumedFrom | None = None
    name: str | None
    labels: dict[str, str]
    model: str
    dataset: str | None
    retry_of: str | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="When the artifacts are deleted, or were; null keeps them.")
    cancel_requested_at: datetime | None
    request: dict[str, Any]
    progress: JobProgress
    result: FinishedJob | None
    error: ErrorInfo | None
    links: JobLinks

    @classmethod
    def of(cls, row: tables.Job, base_url: str, kept: timedelta | None) -> Self:
        """`kept` is how long artifacts stay after their job's end; None is for ever."""
        return cls.model_validate(job_fields(row, base_url, kept))


def job_fields(row: tables.Job, base_url: str, kept: timedelta | None) -> dict[str, Any]:
    """The fields of a `Job`. What the store holds was validated when it was written; long lists are sent as they are."""
    here = f"{base_url}/v1/jobs/{row.id}"
    result = None
    if row.result is not None:
        result = {**_RESULT_DEFAULTS, **row.result}
        result["artifacts"] = [
            {
                "object": "artifact",
                "name": artifact["name"],
                "media_type": artifact["media_type"],
                "size": artifact["size"],
                "sha256": artifact["sha256"],
                "url": f"{here}/artifacts/{quote(artifact['name'])}",
            }
            for artifact in row.result["artifacts"]
        ]
    return {
        "id": row.id,
        "object": "job",
        "status": row.status,
        "stage": row.stage,
        "attempt": row.attempt,
        "device": row.device,
        "resumed_from": row.resumed_from,
        "name": row.name,
        "labels": row.labels,
        "model": row.model_id,
        "dataset": row.dataset_id,
        "retry_of": row.retry_of,
        "created_at": row.created_at,
        "queued_at": row.queued_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "expires_at": _artifacts_until(row, kept),
        "cancel_requested_at": row.cancel_requested_at,
        "request": row.request,
        "progress": _NO_PROGRESS if row.progress is None else row.progress,
        "result": result,
        "error": None if row.error is None else {**_ERROR_DEFAULTS, **row.error},
        "links": {
            "self": here,
            "events": f"{here}/events",
            "cancel": f"{here}/cancel",
            "artifacts": f"{here}/artifacts",
            "bundle": f"{here}/bundle",
        },
    }


def _artifacts_until(row: tables.Job, kept: timedelta | None) -> datetime | None:
    """When the artifacts go, or went."""
    if row.expires_at is not None or kept is None or row.result is None or not row.result["artifacts"]:
        return row.expires_at
    return row.finished_at + kept


def _defaults(of: type[BaseModel]) -> dict[str, Any]:
    """What rows lack that were written before a field was there."""
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in of.model_fields.items()
        if not field.is_required()
    }


_RESULT_DEFAULTS = _defaults(JobResult)
_ERROR_DEFAULTS = _defaults(ErrorInfo)
_NO_PROGRESS = JobProgress().model_dump(mode="json")


class PlanLinks(BaseModel):
    self: str


class Plan(BaseModel):
    """`status`: planning, ready or failed. The rest is null or empty until it is ready; a plan that is ready and not
    `feasible` carries the `error` that a job would fail with."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["plan"] = "plan"
    status: PlanStatus
    model: str
    dataset: str | None
    feasible: bool | None
    predicted: dict[str, Any] | None
    baseline: dict[str, Any] | None
    constraints: list[ConstraintResult]
    layers: list[PlannedLayer]
    frozen: list[dict[str, Any]]
    smallest: dict[str, Any] | None
    note: str
    request: dict[str, Any]
    error: ErrorInfo | None
    created_at: datetime
    finished_at: datetime | None
    links: PlanLinks

    @classmethod
    def of(cls, row: tables.Plan, base_url: str) -> Self:
        nothing = {
            "feasible": None,
            "predicted": None,
            "baseline": None,
            "constraints": [],
            "layers": [],
            "frozen": [],
            "smallest": None,
            "note": "",
            "error": row.error,
        }
        return cls.model_validate(
            {
                **nothing,
                **(row.result or {}),
                "id": row.id,
                "status": row.status,
                "model": row.model_id,
                "dataset": row.dataset_id,
                "request": row.request,
                "created_at": row.created_at,
                "finished_at": row.finished_at,
                "links": {"self": f"{base_url}/v1/plans/{row.id}"},
            }
        )


class Listing(BaseModel):
    """A page: `next` is the `after` of the following page, null on the last one."""

    object: Literal["list"] = "list"
    has_more: bool
    next: str | None

    @classmethod
    def of(cls, page: Page[Any], resource: Callable[[Any], object] = lambda row: row) -> Self:
        """Each row of the page as its resource."""
        cursor = None if page.next is None else str(page.next)
        return cls.model_validate(
            {"data": [resource(row) for row in page.rows], "has_more": page.has_more, "next": cursor}
        )


class ModelList(Listing):
    data: list[Model]


class DatasetList(Listing):
    data: list[Dataset]


class JobList(Listing):
    data: list[Job]


class PlanList(Listing):
    data: list[Plan]


class EventList(Listing):
    data: list[Event]


class ArtifactList(Listing):
    data: list[Artifact]


class MethodList(Listing):
    data: list[MethodInfo]


class ArchitectureList(Listing):
    data: list[ArchitectureInfo]


def slice_of(rows: Sequence[Row], cursor: Callable[[Row], str], *, limit: int, after: str | None) -> Page[Row]:
    """One page of a short list held in memory, in its own order. Raises Problem for a cursor that names no row."""
    limit = coerced(limit)
    start = 0
    if after is not None:
        start = next((index + 1 for index, row in enumerate(rows) if cursor(row) == after), -1)
        if start < 0:
            raise Problem.at("/after", "unknown_cursor", f"No entry of this list is called {after[:100]!r}.")
    found = rows[start : start + limit]
    has_more = start + limit < len(rows)
    return Page(rows=found, has_more=has_more, next=cursor(found[-1]) if has_more else None)


def job_page(page: Page[tables.Job], base_url: str, kept: timedelta | None) -> Response:
    """A `JobList`, written at once: to validate a hundred results and then to write them is most of a list's time."""
    data = [job_fields(row, base_url, kept) for row in page.rows]
    body = {"object": "list", "has_more": page.has_more, "next": page.next, "data": data}
    return Response(to_json(body), media_type="application/json")


def base_url(request: Request) -> str:
    """Where the client reached this service, without a slash at the end."""
    return str(request.base_url).rstrip("/")
