"""What a worker holds while it works: a claim, and plain descriptions of everything that the runner needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from store.contract import WorkKind
from store.layout import artifact_key, checkpoint_key
from store.tables import Dataset, Job, Model, Plan, Work


@dataclass(frozen=True)
class ModelSubject:
    """A model file and what is known about it: what the user said, or, after inspection, what was found."""

    id: str
    filename: str
    object_key: str
    size_bytes: int
    sha256: str
    format: str | None
    architecture: str | None
    architecture_args: Mapping[str, Any]
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None


@dataclass(frozen=True)
class DatasetSubject:
    """A dataset file and how to read it: `normalization` is `{"mean": […], "std": […]}`, `convert` the JSON of a `Conversion`."""

    id: str
    filename: str
    object_key: str
    size_bytes: int
    sha256: str
    normalization: Mapping[str, Any] | None
    scale: float | None
    convert: Mapping[str, Any] | None


@dataclass(frozen=True)
class JobSubject:
    """A job, or a plan for one: its request (JSON of `JobRequest`) and its two files, both inspected and ready."""

    request: Mapping[str, Any]
    model: ModelSubject
    dataset: DatasetSubject | None


@dataclass(frozen=True)
class StoredCheckpoint:
    """What an attempt of a job left for the next one."""

    object_key: str
    sha256: str
    attempt: int
    at: datetime


@dataclass(frozen=True)
class Claim:
    """The right to work on one thing until the lease ends. `attempt` is the fencing token of every later write;
    `troubles` is how often workers gave it back for reasons of their own; `checkpoint` is where an earlier attempt at a
    job got to."""

    id: str
    kind: WorkKind
    tenant_id: str
    attempt: int
    worker_id: str
    subject: JobSubject | ModelSubject | DatasetSubject
    max_runtime_s: int
    troubles: int
    checkpoint: StoredCheckpoint | None = None

    def object_key(self, name: str) -> str:
        """Where this attempt of a job stores the artifact `name`."""
        return artifact_key(self.tenant_id, self.id, self.attempt, name)

    def checkpoint_key(self, number: int) -> str:
        """Where this attempt of a job stores its checkpoint number `number`."""
        return checkpoint_key(self.tenant_id, self.id, self.attempt, number)


@dataclass(frozen=True)
class Heartbeat:
    """The answer to a heartbeat: whether the job should stop."""

    cancel_requested: bool


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a finished job, already stored."""

    name: str
    media_type: str
    size: int
    sha256: str
    object_key: str


def describe(session: Session, work: Work) -> JobSubject | ModelSubject | DatasetSubject:
    """The payload of a claim on `work`."""
    match work.kind:
        case WorkKind.inspect_model:
            return _model(session, work.id)
        case WorkKind.inspect_dataset:
            return _dataset(session, work.id)
        case WorkKind.job | WorkKind.plan:
            row = session.get_one(Job if work.kind is WorkKind.job else Plan, work.id)
            dataset = None if row.dataset_id is None else _dataset(session, row.dataset_id)
            return JobSubject(
                request=_engine_request(row.request), model=_model(session, row.model_id), dataset=dataset
            )


def checkpoint_of(job: Job) -> StoredCheckpoint | None:
    if job.checkpoint_key is None:
        return None
    return StoredCheckpoint(job.checkpoint_key, job.checkpoint_sha256, job.checkpoint_attempt, job.checkpoint_at)


def _engine_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request without what is no business of the engine: a webhook's URL may hold a secret."""
    return {key: value for key, value in request.items() if key != "webhook"}


def _model(session: Session, id: str) -> ModelSubject:
    model = session.get_one(Model, id)
    return ModelSubject(
        id=model.id,
        filename=model.filename,
        object_key=model.object_key,
        size_bytes=model.size_bytes,
        sha256=model.sha256,
        format=model.format,
        architecture=model.architecture,
        architecture_args=model.architecture_args,
        input_shape=model.input_shape,
    )


def _dataset(session: Session, id: str) -> DatasetSubject:
    dataset = session.get_one(Dataset, id)
    return DatasetSubject(
        id=dataset.id,
        filename=dataset.filename,
        object_key=dataset.object_key,
        size_bytes=dataset.size_bytes,
        sha256=dataset.sha256,
        normalization=dataset.normalization,
        scale=dataset.scale,
        convert=dataset.convert,
    )
