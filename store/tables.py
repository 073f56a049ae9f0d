"""The tables. A job's row is the truth about it; `work` is what a worker may claim; nothing else holds state.

Every row of a tenant says so, or hangs on one that does. `work.id` is the id of its subject (a job, a plan, a
model or a dataset). Ids of models and datasets in `jobs` and `plans` are kept after those are deleted, so they are not
foreign keys.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Float, ForeignKey, Index, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.contract import InspectionStatus, JobStatus, PlanStatus, WorkKind
from store.dialect import EnumText, UtcDateTime

LOCAL_TENANT = "local"
"""The one tenant of the embedded mode; the first migration creates it."""


class WorkState(StrEnum):
    queued = "queued"
    running = "running"
    done = "done"


class Scope(StrEnum):
    """What a key may do; each includes those before it. `admin` is for webhooks and their secrets."""

    read = "read"
    write = "write"
    admin = "admin"

    def includes(self, other: Scope) -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(other)


class EndpointStatus(StrEnum):
    active = "active"
    disabled = "disabled"


class DeliveryStatus(StrEnum):
    pending = "pending"
    delivered = "delivered"
    failed = "failed"


def _one_of(column: str, enum: type[StrEnum]) -> CheckConstraint:
    values = ", ".join(f"'{member.value}'" for member in enum)
    return CheckConstraint(f"{column} IN ({values})", name=f"{column}_known")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - declarative reads it from the class
        str: Text(),
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[int]: JSON(none_as_null=True),
        list[float]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        list[int] | dict[str, list[int]]: JSON(none_as_null=True),
        JobStatus: EnumText(JobStatus),
        InspectionStatus: EnumText(InspectionStatus),
        PlanStatus: EnumText(PlanStatus),
        WorkKind: EnumText(WorkKind),
        WorkState: EnumText(WorkState),
        Scope: EnumText(Scope),
        EndpointStatus: EnumText(EndpointStatus),
        DeliveryStatus: EnumText(DeliveryStatus),
    }


Id = String(32)


class Tenant(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A key of one tenant. Only the digest is kept; `prefix` is what a list may show."""

    __tablename__ = "api_keys"
    __table_args__ = (_one_of("scope", Scope),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[Scope]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Model(Base):
    __tablename__ = "models"
    __table_args__ = (Index(None, "tenant_id", "id"), _one_of("status", InspectionStatus))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    name: Mapped[str]
    filename: Mapped[str]
    object_key: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    format: Mapped[str | None] = mapped_column(String(16))
    architecture: Mapped[str | None]
    architecture_args: Mapped[dict[str, Any]]
    input_shape: Mapped[list[int] | dict[str, list[int]] | None] = mapped_column(JSON(none_as_null=True))
    status: Mapped[InspectionStatus]
    profile: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class Dataset(Base):
    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant_id", "id"), _one_of("status", InspectionStatus))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    name: Mapped[str]
    filename: Mapped[str]
    object_key: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    normalization: Mapped[dict[str, Any] | None]
    scale: Mapped[float | None]
    convert: Mapped[dict[str, Any] | None]
    status: Mapped[InspectionStatus]
    format: Mapped[str | None] = mapped_column(String(32))
    classes: Mapped[int | None]
    class_names: Mapped[list[str] | None]
    splits: Mapped[dict[str, Any] | None]
    class_counts: Mapped[dict[str, Any] | None]
    image_shape: Mapped[list[int] | None]
    mean: Mapped[list[float] | None]
    std: Mapped[list[float] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class Upload(Base):
    """A file on its way here in parts. `resource_id` is the model or dataset that it becomes, with `fields`, when it is
    completed; `handle` is the object store's own name for the parts."""

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "tenant_id", "id"), Index(None, "expires_at"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    purpose: Mapped[str] = mapped_column(String(16))
    resource_id: Mapped[str] = mapped_column(Id)
    filename: Mapped[str]
    fields: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    part_size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    object_key: Mapped[str]
    handle: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]


class Job(Base):
    """One job. `version` grows with every change that a client can see: it is the ETag.

    checkpoint_*: the stored file from which the next attempt goes on; it stays here until that file is deleted, after the
    job's end. resumed_from: the checkpoint that the running attempt, or the last one, went on from.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "status", "id"),
        Index(None, "model_id"),
        Index(None, "dataset_id"),
        Index(None, "checkpoint_key"),
        _one_of("status", JobStatus),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    name: Mapped[str | None]
    model_id: Mapped[str] = mapped_column(Id)
    dataset_id: Mapped[str | None] = mapped_column(Id)
    retry_of: Mapped[str | None] = mapped_column(Id)
    status: Mapped[JobStatus]
    stage: Mapped[str | None] = mapped_column(String(32))
    attempt: Mapped[int]
    request: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    version: Mapped[int]
    last_event_seq: Mapped[int]
    checkpoint_key: Mapped[str | None]
    checkpoint_size: Mapped[int | None] = mapped_column(BigInteger)
    checkpoint_sha256: Mapped[str | None] = mapped_column(String(64))
    checkpoint_attempt: Mapped[int | None]
    checkpoint_at: Mapped[datetime | None]
    resumed_from: Mapped[dict[str, Any] | None]

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.request["labels"])


class JobLabel(Base):
    """The labels of `jobs.request` once more, in a form that SQL can search. Each says whose job it is and how that stands,
    so that a page of one label and one status is read from one index, however rare the two are together."""

    __tablename__ = "job_labels"
    __table_args__ = (
        Index(None, "tenant_id", "key", "value", "job_id"),
        Index(None, "tenant_id", "key", "value", "status", "job_id"),
    )

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))
    tenant_id: Mapped[str] = mapped_column(Id)
    status: Mapped[JobStatus]


class JobEvent(Base):
    """What happened to a job, numbered 1, 2, 3, … without gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class Artifact(Base):
    """A file of a finished job; rows appear only with the transaction that finishes it."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(255))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    object_key: Mapped[str]
    created_at: Mapped[datetime]


class Plan(Base):
    """What a job with this request would do. `result` is a `PlanOutcome`, `error` why there is none."""

    __tablename__ = "plans"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "model_id"),
        Index(None, "dataset_id"),
        _one_of("status", PlanStatus),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    model_id: Mapped[str] = mapped_column(Id)
    dataset_id: Mapped[str | None] = mapped_column(Id)
    status: Mapped[PlanStatus]
    request: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class Work(Base):
    """One claimable thing. `attempt` only fences; `losses` counts expired leases, `troubles` how often a worker gave it
    back for reasons of its own."""

    __tablename__ = "work"
    __table_args__ = (
        Index(None, "state", "priority", "id"),
        Index(None, "state", "lease_expires_at"),
        _one_of("kind", WorkKind),
        _one_of("state", WorkState),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[WorkKind]
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    queue: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    state: Mapped[WorkState]
    attempt: Mapped[int]
    losses: Mapped[int]
    troubles: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_expires_at: Mapped[datetime | None]
    available_at: Mapped[datetime]
    cancel_requested_at: Mapped[datetime | None]
    max_runtime_s: Mapped[int]
    overdue_at: Mapped[datetime | None]


class WebhookEndpoint(Base):
    """Where a tenant, or one job of it, wants to be told what happens. `secret` signs every message."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "status", "job_id"),
        Index(None, "job_id"),
        _one_of("status", EndpointStatus),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    job_id: Mapped[str | None] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"))
    url: Mapped[str]
    events: Mapped[list[Any]] = mapped_column(JSON(none_as_null=True))
    description: Mapped[str | None]
    secret: Mapped[str]
    status: Mapped[EndpointStatus]
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[datetime | None]
    created_at: Mapped[datetime]


class WebhookDelivery(Base):
    """One message to one endpoint: what it says, how often it was sent (in this `round`, which grows when somebody asks
    for it again), and when it is due next."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "endpoint_id", "id"),
        Index(None, "status", "next_attempt_at"),
        Index(None, "created_at"),
        _one_of("status", DeliveryStatus),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(Id, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(Id)
    type: Mapped[str] = mapped_column(String(64))
    body: Mapped[str]
    status: Mapped[DeliveryStatus]
    round: Mapped[int]
    attempts: Mapped[int]
    next_attempt_at: Mapped[datetime]
    last_attempt_at: Mapped[datetime | None]
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class IdempotencyKey(Base):
    """A key that a client gave a request that creates: reserved by `holder` for a while, then with its answer."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "expires_at"),)

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    operation: Mapped[str]
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    holder: Mapped[str | None] = mapped_column(String(32))
    reserved_until: Mapped[datetime | None]
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[str | None]
    resource_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Worker(Base):
    """What a worker said it can do when it last started, and when it last said that it is there."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[str] = mapped_column(String(64))
    catalogue: Mapped[dict[str, Any]]
    published_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class Tally(Base):
    """One counter, or one bucket of a histogram; see `store.tallies`."""

    __tablename__ = "tallies"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(String(255), primary_key=True)
    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column(Float(53))
