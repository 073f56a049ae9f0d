"""Claim, keep, finish: how workers share the work without ever doing it twice.

A claim is a lease on one row of `work`, in database time. Its `attempt` number is a fencing token: every later write
says `WHERE attempt = … AND lease_owner = …` and raises LeaseLost, with nothing written, when another worker (or the
sweeper) has taken the row since. Expired leases go back to the queue; the third one ends the work as `worker_lost`.

Every function opens and commits its own transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from store import dialect, gpu_time, tallies, waiting
from store.claims import Claim, Heartbeat, StoredArtifact, checkpoint_of, describe
from store.contract import (
    DatasetInspection,
    ErrorInfo,
    InspectionStatus,
    JobProgress,
    JobResult,
    JobStatus,
    ModelInspection,
    PlanOutcome,
    PlanStatus,
    TrainingEpoch,
    WorkKind,
)
from store.database import Database
from store.demand import most_urgent
from store.errors import LeaseLost
from store.queue import ANY_QUEUE
from store.tables import Artifact, Dataset, Job, Model, Plan, Work, WorkState
from store.tallies import TallyName
from store.transitions import enter_stage, touch, transition

OVERDUE_GRACE_S = 900.0
"""How long after its time a worker may still be storing results; what takes longer hangs, however alive its lease is."""

_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None, "overdue_at": None}


def claim(
    database: Database,
    *,
    worker_id: str,
    kinds: Collection[WorkKind],
    queues: Collection[str],
    lease_s: float,
    gpus: int = 1,
) -> Claim | None:
    """Take the most urgent claimable work of these kinds, or None; `store.demand` says which that is.

    `queues` are the devices that this worker serves (`cpu`, `gpu`); work for any device is always included. A job or a
    plan is claimable once its model and its dataset are ready. `gpus`: how many of them a job has to itself on a worker
    that serves `gpu`.
    """
    with database.transaction() as session:
        now = dialect.now(session)
        work = session.scalar(
            update(Work)
            .where(Work.id == most_urgent(kinds, queues, now).scalar_subquery())
            .values(
                state=WorkState.running,
                attempt=Work.attempt + 1,
                lease_owner=worker_id,
                lease_expires_at=now + timedelta(seconds=lease_s),
            )
            .returning(Work)
        )
        if work is None:
            return None
        work.overdue_at = now + timedelta(seconds=work.max_runtime_s + OVERDUE_GRACE_S)
        waited_s = (now - work.available_at).total_seconds()
        tallies.observe(session, TallyName.queue_wait, waited_s, kind=work.kind.value, queue=work.queue)
        checkpoint = None
        if work.kind is WorkKind.job:
            job = session.get_one(Job, work.id, with_for_update=True)
            checkpoint = checkpoint_of(job)
            # The runner takes the GPUs that it sees unless it is told not to.
            gets = gpus if gpu_time.GPU in queues and work.queue in (gpu_time.GPU, ANY_QUEUE) else 0
            transition(session, job, JobStatus.running, now=now, attempt=work.attempt, gpus=gets)
        return Claim(
            id=work.id,
            kind=work.kind,
            tenant_id=work.tenant_id,
            attempt=work.attempt,
            worker_id=worker_id,
            subject=describe(session, work),
            max_runtime_s=work.max_runtime_s,
            troubles=work.troubles,
            checkpoint=checkpoint,
        )


def heartbeat(
    database: Database,
    claim: Claim,
    lease_s: float,
    progress: JobProgress | None = None,
    stage: str | None = None,
    epochs: Sequence[TrainingEpoch] = (),
) -> Heartbeat:
    """Renew the lease; tell a job's progress, its stage (a new one writes the event `job.stage`) and then the epochs that
    ended in it (each writes the event `job.epoch`).

    Raises LeaseLost: stop at once and write nothing more.
    """
    with database.transaction() as session:
        now = dialect.now(session)
        work = fenced(session, claim, lease_expires_at=now + timedelta(seconds=lease_s))
        if claim.kind is WorkKind.job and (progress is not None or stage is not None or epochs):
            job = session.get_one(Job, claim.id, with_for_update=True)
            if progress is not None:
                job.progress = progress.model_copy(update={"updated_at": now}).model_dump(mode="json")
                job.version += 1
            if stage is not None and stage != job.stage:
                enter_stage(session, job, stage, now=now)
            for epoch in epochs:
                touch(session, job, "job.epoch", {**epoch.model_dump(), "attempt": claim.attempt}, now=now)
        return Heartbeat(cancel_requested=work.cancel_requested_at is not None)


def finish_job(
    database: Database, claim: Claim, *, result: JobResult, artifacts: Sequence[StoredArtifact]
) -> JobStatus:
    """End a job as succeeded, its artifacts becoming visible with it; returns the status that it got.

    A job that was asked to cancel ends as cancelled instead, without result or artifacts. Raises LeaseLost.
    """
    with database.transaction() as session:
        now = dialect.now(session)
        job = _end(session, claim)
        if job.status is JobStatus.cancelling:
            transition(session, job, JobStatus.cancelled, now=now)
            return job.status
        transition(session, job, JobStatus.succeeded, now=now, result=result)
        session.add_all(
            Artifact(
                job_id=job.id,
                name=artifact.name,
                media_type=artifact.media_type,
                size=artifact.size,
                sha256=artifact.sha256,
                object_key=artifact.object_key,
                created_at=now,
            )
            for artifact in artifacts
        )
        return job.status


def fail_job(database: Database, claim: Claim, error: ErrorInfo, result: JobResult | None = None) -> JobStatus:
    """End a job as failed (or cancelled, if that was asked); `result` is the best that was reached, for `target_unmet`.

    Returns the status that it got. Raises LeaseLost.
    """
    with database.transaction() as session:
        now = dialect.now(session)
        job = _end(session, claim)
        if job.status is JobStatus.cancelling:
            transition(session, job, JobStatus.cancelled, now=now)
        else:
            transition(session, job, JobStatus.failed, now=now, error=error, result=result)
        return job.status


def cancel_job(database: Database, claim: Claim) -> None:
    """End a cancelling job as cancelled, once its runner is gone. Raises LeaseLost, and IllegalTransition if nobody asked."""
    with database.transaction() as session:
        transition(session, _end(session, claim), JobStatus.cancelled, now=dialect.now(session))


def release(database: Database, claim: Claim) -> None:
    """Give work back unfinished because this worker stops: claimable at once, no loss counted. Raises LeaseLost."""
    with database.transaction() as session:
        now = dialect.now(session)
        work = fenced(session, claim, state=WorkState.queued, available_at=now, **_NO_LEASE)
        waiting.requeue(session, work, now=now, reason="released")


def trouble(database: Database, claim: Claim, *, delay_s: float, what: str) -> None:
    """Give work back because of trouble that is the worker's own, claimable after `delay_s` seconds, no loss counted.

    `what` names the trouble for whoever asked for the work: where it never ends, the work does, and says so. Raises
    LeaseLost.
    """
    with database.transaction() as session:
        work = fenced(session, claim, **_NO_LEASE)
        waiting.trouble(session, work, now=dialect.now(session), delay_s=delay_s, what=what)


def lose(database: Database, claim: Claim) -> None:
    """Give work back because its runner died under it: a loss like an expired lease, but at once. Raises LeaseLost."""
    with database.transaction() as session:
        work = fenced(session, claim, **_NO_LEASE)
        waiting.lose(session, work, now=dialect.now(session), backoff_s=waiting.LOSS_BACKOFF_S)


def finish_model(database: Database, claim: Claim, inspection: ModelInspection) -> None:
    """Make a model ready with what inspection found; what waits for it becomes claimable. Raises LeaseLost."""
    with database.transaction() as session:
        fenced(session, claim, state=WorkState.done, **_NO_LEASE)
        model = session.get_one(Model, claim.id, with_for_update=True)
        found = inspection.model_dump(mode="json")
        model.format = inspection.format
        model.architecture = inspection.architecture
        model.architecture_args = found["architecture_args"]
        model.input_shape = found["input_shape"]
        model.profile = found["profile"]
        model.status = InspectionStatus.ready


def finish_dataset(database: Database, claim: Claim, inspection: DatasetInspection) -> None:
    """Make a dataset ready with what inspection found; what waits for it becomes claimable. Raises LeaseLost."""
    with database.transaction() as session:
        fenced(session, claim, state=WorkState.done, **_NO_LEASE)
        dataset = session.get_one(Dataset, claim.id, with_for_update=True)
        for field, value in inspection.model_dump(mode="json").items():
            setattr(dataset, field, value)
        dataset.status = InspectionStatus.ready


def finish_plan(database: Database, claim: Claim, outcome: PlanOutcome) -> None:
    """Make a plan ready. Raises LeaseLost."""
    with database.transaction() as session:
        fenced(session, claim, state=WorkState.done, **_NO_LEASE)
        plan = session.get_one(Plan, claim.id, with_for_update=True)
        plan.status, plan.finished_at = PlanStatus.ready, dialect.now(session)
        plan.result = outcome.model_dump(mode="json")


def reject(database: Database, claim: Claim, error: ErrorInfo) -> None:
    """End short work with an error: a plan fails, an inspected upload is rejected and takes with it, in the same
    transaction, every job and plan that waits for it. Raises LeaseLost."""
    with database.transaction() as session:
        waiting.end(session, fenced(session, claim, **_NO_LEASE), error, now=dialect.now(session))


def expire_leases(database: Database, *, backoff_s: float = waiting.LOSS_BACKOFF_S) -> int:
    """Take every expired lease back; returns how many there were. Safe to run anywhere, any number of times at once."""
    with database.transaction() as session:
        now = dialect.now(session)
        expired = session.scalars(
            select(Work)
            .where(Work.state == WorkState.running, Work.lease_expires_at < now)
            .order_by(Work.id)
            .with_for_update(skip_locked=True)
        ).all()
        for work in expired:
            waiting.lose(session, work, now=now, backoff_s=backoff_s)
        return len(expired)


def end_overdue(database: Database) -> int:
    """End work whose worker keeps the lease and has long used up its time; returns how much there was.

    A worker that is well stops such work by itself; this is for one that hangs. Safe to run anywhere, twice at once.
    """
    with database.transaction() as session:
        now = dialect.now(session)
        overdue = session.scalars(
            select(Work)
            .where(Work.state == WorkState.running, Work.overdue_at < now)
            .order_by(Work.id)
            .with_for_update(skip_locked=True)
        ).all()
        for work in overdue:
            work.lease_owner = work.lease_expires_at = work.overdue_at = None
            waiting.end(session, work, waiting.too_slow(work.kind, work.max_runtime_s), now=now)
        return len(overdue)


def release_owner(database: Database, worker_prefix: str) -> int:
    """Take back at once what workers with this id prefix hold; returns how many things.

    For a restarted process that knows, by its lock on the data folder, that its predecessor is dead. It died with the
    work in its hands, so this counts as a loss, but nothing has to wait for the lease.
    """
    if not worker_prefix:
        raise ValueError("An empty prefix would take every worker's leases.")
    with database.transaction() as session:
        now = dialect.now(session)
        held = session.scalars(
            select(Work)
            .where(
                Work.state == WorkState.running, func.substr(Work.lease_owner, 1, len(worker_prefix)) == worker_prefix
            )
            .order_by(Work.id)
            .with_for_update()
        ).all()
        for work in held:
            waiting.lose(session, work, now=now, backoff_s=0)
        return len(held)


def fenced(session: Session, claim: Claim, **values: Any) -> Work:
    """Update the claim's work row if the claim still holds it; raise LeaseLost otherwise."""
    work = session.scalar(
        update(Work)
        .where(
            Work.id == claim.id,
            Work.state == WorkState.running,
            Work.attempt == claim.attempt,
            Work.lease_owner == claim.worker_id,
        )
        .values(**values)
        .returning(Work)
    )
    if work is None:
        raise LeaseLost(claim.id, claim.attempt, claim.worker_id)
    return work


def _end(session: Session, claim: Claim) -> Job:
    """Close the claim's work row and lock its job."""
    fenced(session, claim, state=WorkState.done, **_NO_LEASE)
    return session.get_one(Job, claim.id, with_for_update=True)
