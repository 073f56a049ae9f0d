"""Jobs with their labels, events and artifacts, and plans of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from store.contract import JobStatus, PlanStatus
from store.tables.base import Base, Id, one_of


class Job(Base):
    """One job. `version` grows with every change that a client can see: it is the ETag.

    checkpoint_*: the stored file from which the next attempt goes on; it stays here until that file is deleted, after
    the job's end. resumed_from: the checkpoint that the running attempt, or the last one, went on from. device: `cpu`
    or `gpu`, what the worker has that runs it, or ran it last; gpus: how many of them it has to itself.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "status", "id"),
        Index(None, "model_id"),
        Index(None, "dataset_id"),
        Index(None, "checkpoint_key"),
        one_of("status", JobStatus),
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
    device: Mapped[str | None] = mapped_column(String(16))
    gpus: Mapped[int | None]
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
    """The labels of `jobs.request` once more, in a form that SQL can search. Each says whose job it is and how that
    stands, so that a page of one label and one status is read from one index, however rare the two are together."""

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
        one_of("status", PlanStatus),
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
