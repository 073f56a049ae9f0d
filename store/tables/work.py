"""What workers may claim, who they are, what they count, and how long they held a GPU."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Float, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from store.contract import WorkKind
from store.tables.base import Base, Id, WorkState, one_of


class Work(Base):
    """One claimable thing. `attempt` only fences; `losses` counts expired leases, `troubles` how often a worker gave it
    back for reasons of its own."""

    __tablename__ = "work"
    __table_args__ = (
        Index(None, "state", "priority", "id"),
        Index(None, "state", "lease_expires_at"),
        one_of("kind", WorkKind),
        one_of("state", WorkState),
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


class GpuRun(Base):
    """One attempt at a job that held a GPU and has ended. It outlives its job: what was used stays used."""

    __tablename__ = "gpu_runs"
    __table_args__ = (Index(None, "tenant_id", "ended_at"), Index(None, "ended_at"))

    job_id: Mapped[str] = mapped_column(Id, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    ended_at: Mapped[datetime]
    seconds: Mapped[float] = mapped_column(Float(53))


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
