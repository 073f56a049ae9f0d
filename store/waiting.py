"""What becomes of work that comes back unfinished: it waits again, or it ends."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import queue
from store.contract import ErrorCode, ErrorInfo, InspectionStatus, JobStatus, WorkKind
from store.tables import Dataset, Job, Model, Work, WorkState
from store.transitions import transition

LOSS_LIMIT = 3
"""How many workers may be lost over one piece of work before the work itself is blamed."""

LOSS_BACKOFF_S = 2.0
"""Wait after the first loss; the second waits twice as long."""


def requeue_job(
    session: Session, work: Work, job: Job, *, now: datetime, reason: Literal["released", "worker_lost"]
) -> None:
    """Back to the queue, unless the job was asked to stop: then its work ends and it is cancelled."""
    if job.status is JobStatus.cancelling:
        work.state = WorkState.done
        transition(session, job, JobStatus.cancelled, now=now)
    else:
        transition(session, job, JobStatus.queued, now=now, data={"reason": reason})


def lose(session: Session, work: Work, *, now: datetime, backoff_s: float) -> None:
    """Take a lease back from a worker that is gone. `work` is locked by this transaction."""
    work.losses += 1
    work.lease_owner = None
    work.lease_expires_at = None
    work.available_at = now + timedelta(seconds=backoff_s * work.losses)
    final = work.losses >= LOSS_LIMIT
    work.state = WorkState.done if final else WorkState.queued
    if work.kind is not WorkKind.job:
        if final:
            reject_upload(session, work, _worker_lost("inspecting this file"), now=now)
        return
    job = session.get_one(Job, work.id, with_for_update=True)
    if final and job.status is JobStatus.running:
        transition(session, job, JobStatus.failed, now=now, error=_worker_lost("running this job"))
    else:
        requeue_job(session, work, job, now=now, reason="worker_lost")


def reject_upload(session: Session, work: Work, error: ErrorInfo, *, now: datetime) -> None:
    """Reject the model or dataset of `work`, whose work row is done, and fail the jobs that wait for it."""
    is_model = work.kind is WorkKind.inspect_model
    upload = session.get_one(Model if is_model else Dataset, work.id, with_for_update=True)
    upload.status = InspectionStatus.rejected
    upload.error = error.model_dump(mode="json")
    resource, uses = ("model", Job.model_id) if is_model else ("dataset", Job.dataset_id)
    failure = error.model_copy(
        update={
            "message": f"The {resource} {work.id} was rejected: {error.message}",
            "param": f"/{resource}",
        }
    )
    waiting = select(Job.id).where(uses == work.id, Job.status == JobStatus.queued).order_by(Job.id)
    for job_id in session.scalars(waiting).all():
        job_work = queue.lock(session, job_id)
        job = session.get_one(Job, job_id, with_for_update=True, populate_existing=True)
        if job.status is JobStatus.queued:  # not cancelled since
            job_work.state = WorkState.done
            transition(session, job, JobStatus.failed, now=now, error=failure)


def _worker_lost(doing: str) -> ErrorInfo:
    return ErrorInfo(
        code=ErrorCode.worker_lost,
        message=(
            f"{LOSS_LIMIT} workers in a row stopped answering while {doing}, so it is not tried again. Most often the "
            "worker ran out of memory or was killed; see the workers' logs."
        ),
        retryable=True,
    )
