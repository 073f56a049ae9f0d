"""How a job's status may change: one table, one function, one event per change.

    queued ──→ running ──→ succeeded | failed
      ↑           │  └───→ cancelling ──→ cancelled
      └───────────┘ (lost or released lease)
    queued ──→ cancelled | failed (its model or dataset was rejected)

Once cancelling, a job only becomes cancelled: whoever was told so is never contradicted by a late success.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store import gpu_time, tallies
from store.contract import ErrorInfo, JobProgress, JobResult, JobStatus
from store.deliveries import announce
from store.errors import IllegalTransition
from store.tables import Job, JobEvent, JobLabel
from store.tallies import TallyName

STAGES = frozenset({"intake", "profile", "plan", "apply", "verify", "recover", "encode", "deliver"})

TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.queued: frozenset({JobStatus.running, JobStatus.cancelled, JobStatus.failed}),
    JobStatus.running: frozenset({JobStatus.queued, JobStatus.cancelling, JobStatus.succeeded, JobStatus.failed}),
    JobStatus.cancelling: frozenset({JobStatus.cancelled}),
    JobStatus.succeeded: frozenset(),
    JobStatus.failed: frozenset(),
    JobStatus.cancelled: frozenset(),
}


def transition(
    session: Session,
    job: Job,
    to: JobStatus,
    *,
    now: datetime,
    attempt: int | None = None,
    gpus: int = 0,
    result: JobResult | None = None,
    error: ErrorInfo | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Move `job` (locked by this transaction) to `to`, with its timestamps, its event and its new version.

    `attempt` comes with running, and `gpus`, how many the worker gives the job; `result` with succeeded (or failed,
    when the best that was reached is worth showing), `error` with failed; `data` is added to the event `job.<status>`.
    Raises IllegalTransition.
    """
    if to not in TRANSITIONS[job.status]:
        raise IllegalTransition(job.id, job.status, to)
    ran_s = None
    if job.status is not JobStatus.queued and job.started_at is not None:
        ran_s = (now - job.started_at).total_seconds()
    job.status = to
    if job.labels:
        session.execute(update(JobLabel).where(JobLabel.job_id == job.id).values(status=to))
    match to:
        case JobStatus.queued:
            job.queued_at, job.started_at, job.stage, job.progress = now, None, None, None
        case JobStatus.running:
            job.started_at, job.resumed_from = now, None
            job.device, job.gpus = (gpu_time.GPU if gpus else "cpu"), gpus
        case JobStatus.cancelling:
            job.cancel_requested_at = now
        case JobStatus.cancelled:
            job.cancel_requested_at = job.cancel_requested_at or now
    if ran_s is not None and to is not JobStatus.cancelling and job.gpus:
        gpu_time.record(session, job, ran_s * job.gpus, now=now)
    if attempt is not None:
        job.attempt = attempt
    if result is not None:
        job.result = result.model_dump(mode="json")
    if error is not None:
        job.error = error.model_dump(mode="json")
    if to.terminal:
        job.finished_at = now
        job.progress = _ended(job.progress, to, now)
        code = error.code.value if error is not None else "none"
        tallies.count(session, TallyName.jobs_ended, status=to.value, code=code)
        if ran_s is not None:
            tallies.observe(session, TallyName.job_run, ran_s, status=to.value)
            leave_stage(session, job, now=now)
    details: dict[str, Any] = {"status": to.value, "attempt": job.attempt}
    if error is not None:
        details["error"] = {"code": error.code.value, "message": error.message}
    touch(session, job, f"job.{to.value}", {**details, **(data or {})}, now=now)


def touch(session: Session, job: Job, type: str, data: Mapping[str, Any], *, now: datetime) -> None:
    """Write the next event of `job`, with the webhook messages about it, and bump its version."""
    job.version += 1
    job.last_event_seq += 1
    session.add(JobEvent(job_id=job.id, seq=job.last_event_seq, type=type, data=dict(data), at=now))
    announce(session, job, type, now=now)


def enter_stage(session: Session, job: Job, stage: str, *, now: datetime) -> None:
    """Let the running `job` go on to another stage, with the event `job.stage`."""
    leave_stage(session, job, now=now)
    job.stage = stage
    touch(session, job, "job.stage", {"stage": stage}, now=now)


def leave_stage(session: Session, job: Job, *, now: datetime) -> None:
    """Count how long the stage took that `job` is in. A stage that a lost worker was in is counted when it is done again."""
    if job.stage is None:
        return
    entered = (
        select(JobEvent.at)
        .where(JobEvent.job_id == job.id, JobEvent.type == "job.stage")
        .order_by(JobEvent.seq.desc())
        .limit(1)
    )
    if (since := session.scalar(entered)) is not None:
        # Names of stages come from a runner, which may have been taken over: only known ones become labels.
        stage = job.stage if job.stage in STAGES else "other"
        tallies.observe(session, TallyName.stage, (now - since).total_seconds(), stage=stage)


def _ended(progress: Mapping[str, Any] | None, to: JobStatus, now: datetime) -> dict[str, Any] | None:
    """The last progress of a job as it should read for ever: no stage is left running."""
    if progress is None:
        return None
    ended = JobProgress.model_validate(progress)
    ended.updated_at, ended.eta_s = now, None
    if to is JobStatus.succeeded:
        ended.fraction = 1.0
    for stage in ended.stages:
        if stage.status == "running":
            stage.status = to.value
    return ended.model_dump(mode="json")
