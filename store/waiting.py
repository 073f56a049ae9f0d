"""What becomes of work that comes back unfinished: it waits again, or it ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from store import queue, tallies
from store.contract import ErrorCode, ErrorInfo, InspectionStatus, JobStatus, PlanStatus, WorkKind
from store.errors import NotFound
from store.tables import Dataset, Job, Model, Plan, Work, WorkState
from store.tallies import TallyName
from store.transitions import transition

LOSS_LIMIT = 3
"""How many workers may be lost over one piece of work before the work itself is blamed."""

LOSS_BACKOFF_S = 2.0
"""Wait after the first loss; the second waits twice as long."""

TROUBLE_LIMIT = 20
"""How often a worker may give one piece of work back for reasons of its own. It waits longer each time, so that this is
more than an hour; what lasts longer is no passing trouble."""

Reason = Literal["released", "worker_trouble", "worker_lost"]

_DOING = {
    WorkKind.job: "running this job",
    WorkKind.plan: "making this plan",
    WorkKind.inspect_model: "inspecting this file",
    WorkKind.inspect_dataset: "inspecting this file",
}


def requeue(session: Session, work: Work, *, now: datetime, reason: Reason) -> None:
    """Let `work`, whose row is queued again, wait; a job that was asked to stop ends as cancelled instead."""
    if work.kind is not WorkKind.job:
        return
    job = session.get_one(Job, work.id, with_for_update=True)
    if job.status is JobStatus.cancelling:
        work.state = WorkState.done
        transition(session, job, JobStatus.cancelled, now=now)
    else:
        transition(session, job, JobStatus.queued, now=now, data={"reason": reason})


def lose(session: Session, work: Work, *, now: datetime, backoff_s: float) -> None:
    """Take a lease back from a worker that is gone. `work` is locked by this transaction."""
    tallies.count(session, TallyName.lost_leases, kind=work.kind.value)
    work.losses += 1
    work.lease_owner = None
    work.lease_expires_at = None
    work.overdue_at = None
    work.available_at = now + timedelta(seconds=backoff_s * work.losses)
    if work.losses >= LOSS_LIMIT:
        message = (
            f"{LOSS_LIMIT} workers in a row stopped answering while {_DOING[work.kind]}, so it is not tried again. Most "
            "often the worker ran out of memory or was killed; see the workers' logs."
        )
        end(session, work, ErrorInfo(code=ErrorCode.worker_lost, message=message, retryable=True), now=now)
    else:
        work.state = WorkState.queued
        requeue(session, work, now=now, reason="worker_lost")


def trouble(session: Session, work: Work, *, now: datetime, delay_s: float, what: str) -> None:
    """Take work back from a worker that cannot do it now. `work` is locked by this transaction, its lease given up."""
    tallies.count(session, TallyName.worker_troubles, kind=work.kind.value)
    work.troubles += 1
    if work.troubles >= TROUBLE_LIMIT:
        message = (
            f"A worker failed {work.troubles} times while {_DOING[work.kind]}, for a reason that is not the task's "
            f"({what}), so it is not tried again. See the workers' logs; once that is mended, send the request again."
        )
        end(session, work, ErrorInfo(code=ErrorCode.internal, message=message, retryable=True), now=now)
    else:
        work.state, work.available_at = WorkState.queued, now + timedelta(seconds=delay_s)
        requeue(session, work, now=now, reason="worker_trouble")


def end(session: Session, work: Work, error: ErrorInfo, *, now: datetime) -> None:
    """End `work`, locked by this transaction, with an error: its job fails (or is cancelled, if that was asked), its
    plan fails, or its upload is rejected."""
    work.state = WorkState.done
    match work.kind:
        case WorkKind.job:
            job = session.get_one(Job, work.id, with_for_update=True)
            if job.status is JobStatus.cancelling:
                transition(session, job, JobStatus.cancelled, now=now)
            else:
                transition(session, job, JobStatus.failed, now=now, error=error)
        case WorkKind.plan:
            fail_plan(session, work.id, error, now=now)
        case WorkKind.inspect_model | WorkKind.inspect_dataset:
            _reject_upload(session, work, error, now=now)


def too_slow(kind: WorkKind, max_runtime_s: int) -> ErrorInfo:
    """Why work was stopped that took longer than it may."""
    limit = f"{max_runtime_s} s"
    match kind:
        case WorkKind.job:
            message = f"This took longer than the {limit} that it may (limits.max_runtime_s) and was stopped."
        case WorkKind.plan:
            message = f"Making this plan took longer than {limit} and was stopped; a job has more time."
        case WorkKind.inspect_model | WorkKind.inspect_dataset:
            message = f"Inspecting this file took longer than {limit} and was stopped."
    return ErrorInfo(code=ErrorCode.timeout, message=message)


def fail_plan(session: Session, id: str, error: ErrorInfo, *, now: datetime) -> None:
    plan = session.get_one(Plan, id, with_for_update=True, populate_existing=True)
    plan.status, plan.error, plan.finished_at = PlanStatus.failed, error.model_dump(mode="json"), now


def _reject_upload(session: Session, work: Work, error: ErrorInfo, *, now: datetime) -> None:
    """Reject the model or dataset of `work`, and end the jobs and plans that wait for it."""
    is_model = work.kind is WorkKind.inspect_model
    upload = session.get_one(Model if is_model else Dataset, work.id, with_for_update=True)
    upload.status = InspectionStatus.rejected
    upload.error = error.model_dump(mode="json")
    resource = "model" if is_model else "dataset"
    failure = error.model_copy(
        update={
            "message": f"The {resource} {work.id} was rejected: {error.message}",
            "param": f"/{resource}",
        }
    )

    def waiting(user: type[Job] | type[Plan], is_waiting: ColumnElement[bool]) -> Iterator[Work]:
        uses = (user.model_id if is_model else user.dataset_id) == work.id
        for id in session.scalars(select(user.id).where(uses, is_waiting).order_by(user.id)).all():
            try:
                found = queue.lock(session, id)
            except NotFound:  # deleted since
                continue
            yield found

    for job_work in waiting(Job, Job.status == JobStatus.queued):
        job = session.get_one(Job, job_work.id, with_for_update=True, populate_existing=True)
        if job.status is JobStatus.queued:  # not cancelled since
            job_work.state = WorkState.done
            transition(session, job, JobStatus.failed, now=now, error=failure)
    for plan_work in waiting(Plan, Plan.status == PlanStatus.planning):
        plan_work.state = WorkState.done
        fail_plan(session, plan_work.id, failure, now=now)
