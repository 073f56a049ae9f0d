"""What one tenant may have at a time, checked in the transaction that would add to it; None is without a limit.

The tenant's row is locked first, so that two requests at once cannot both have the last piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import dialect
from store.contract import JobStatus
from store.errors import QuotaExceeded, TooManyJobs
from store.tables import Artifact, Dataset, Job, Model, Tenant, Upload, Work

GPU_WINDOW_DAYS = 30
_ACTIVE = tuple(status for status in JobStatus if not status.terminal)
GPU_QUEUE = "gpu"


@dataclass(frozen=True)
class Quotas:
    """Of every tenant. gpu_seconds counts jobs with `device: gpu`, from start to end, over the last GPU_WINDOW_DAYS."""

    stored_bytes: int | None = None
    active_jobs: int | None = None
    gpu_seconds: int | None = None

    def require_bytes(self, session: Session, tenant_id: str, more: int) -> None:
        """Room for `more` bytes, beside models, datasets, artifacts and announced uploads. Raises QuotaExceeded."""
        if self.stored_bytes is None:
            return
        _lock(session, tenant_id)
        used = stored_bytes(session, tenant_id)
        if used + more > self.stored_bytes:
            raise QuotaExceeded(
                f"{used} of {self.stored_bytes} bytes are in use, and {more} more do not fit. Delete models, datasets or "
                "jobs that are no longer needed."
            )

    def require_job(self, session: Session, tenant_id: str, device: str) -> None:
        """Room for one more job. Raises TooManyJobs, and QuotaExceeded where its GPU time is used up."""
        if self.active_jobs is not None:
            _lock(session, tenant_id)
            statement = select(func.count()).where(Job.tenant_id == tenant_id, Job.status.in_(_ACTIVE))
            active = session.scalar(statement.select_from(Job)) or 0
            if active >= self.active_jobs:
                raise TooManyJobs(f"{active} jobs are queued or running, and {self.active_jobs} may be. Wait for one.")
        if self.gpu_seconds is not None and device == GPU_QUEUE:
            used_s = gpu_seconds(session, tenant_id)
            if used_s >= self.gpu_seconds:
                raise QuotaExceeded(
                    f"{used_s:.0f} of {self.gpu_seconds} GPU seconds of the last {GPU_WINDOW_DAYS} days are used up."
                )


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Bytes of everything that the tenant has stored or announced."""
    totals = [
        select(func.sum(Model.size_bytes)).where(Model.tenant_id == tenant_id),
        select(func.sum(Dataset.size_bytes)).where(Dataset.tenant_id == tenant_id),
        select(func.sum(Artifact.size)).join(Job, Job.id == Artifact.job_id).where(Job.tenant_id == tenant_id),
        select(func.sum(Upload.size_bytes)).where(
            Upload.tenant_id == tenant_id, Upload.completed_at.is_(None), Upload.expires_at > dialect.now(session)
        ),
    ]
    return sum(int(session.scalar(total) or 0) for total in totals)


def gpu_seconds(session: Session, tenant_id: str) -> float:
    """Seconds that the tenant's GPU jobs have run lately; running ones count up to now."""
    now = dialect.now(session)
    times = session.execute(
        select(Job.started_at, Job.finished_at)
        .join(Work, Work.id == Job.id)
        .where(
            Job.tenant_id == tenant_id,
            Work.queue == GPU_QUEUE,
            Job.started_at > now - timedelta(days=GPU_WINDOW_DAYS),
        )
    )
    return sum(((finished or now) - started).total_seconds() for started, finished in times)


def _lock(session: Session, tenant_id: str) -> None:
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update())
