"""How long each tenant has held GPUs, added up over GPUs: counted where a job ran, whatever it asked for, and whatever
became of it.

An attempt that ends, by success or by a lost worker, leaves a row; one that runs counts from its start. Deleting a job
gives nothing back.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from store import dialect, tallies
from store.contract import JobStatus
from store.database import Database
from store.tables import GpuRun, Job
from store.tallies import TallyName

WINDOW_DAYS = 30
KEPT_DAYS = 400
"""Longer than the window, for whoever wants to look back over a year."""

GPU = "gpu"


def record(session: Session, job: Job, seconds: float, *, now: datetime) -> None:
    """Note that an attempt at `job` has ended which held one GPU for so long, or several for less."""
    tallies.count(session, TallyName.gpu_seconds, seconds)
    session.add(
        GpuRun(job_id=job.id, attempt=job.attempt, tenant_id=job.tenant_id, ended_at=now, seconds=max(0.0, seconds))
    )


def used_s(session: Session, tenant_id: str) -> float:
    """Seconds of GPU that the tenant has used in the last WINDOW_DAYS; running jobs count up to now."""
    now = dialect.now(session)
    ended = session.scalar(
        select(func.sum(GpuRun.seconds)).where(
            GpuRun.tenant_id == tenant_id, GpuRun.ended_at > now - timedelta(days=WINDOW_DAYS)
        )
    )
    running = session.execute(
        select(Job.started_at, Job.gpus).where(
            Job.tenant_id == tenant_id,
            Job.status.in_([JobStatus.running, JobStatus.cancelling]),
            Job.gpus > 0,
            Job.started_at.is_not(None),
        )
    )
    return float(ended or 0.0) + sum((now - started).total_seconds() * gpus for started, gpus in running)


def forget_old(database: Database) -> int:
    """Delete rows that are older than KEPT_DAYS; returns how many. Safe to run anywhere, twice at once."""
    with database.transaction() as session:
        cutoff = dialect.now(session) - timedelta(days=KEPT_DAYS)
        return session.execute(delete(GpuRun).where(GpuRun.ended_at < cutoff)).rowcount
