"""What is kept for a while only: artifacts, models, datasets and plans, each as long as the settings say, and what was
noted of GPUs.

Every deletion is the one that a client would make, so nothing goes that something live uses, and two sweepers at once
delete each thing once. Objects go after the commit; what is left then, the orphan sweep finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select, delete, exists, select

from store import dialect, gpu_time, queue
from store.contract import InspectionStatus
from store.database import Database
from store.datasets import DatasetRepository
from store.errors import Conflict, NotFound
from store.layout import job_prefix
from store.models import ModelRepository
from store.objects import ObjectStore
from store.tables import Artifact, Dataset, Job, Model, Plan
from store.transitions import touch

AT_ONCE = 100


@dataclass(frozen=True)
class Retention:
    """Days; None keeps for ever. Artifacts count from their job's end, uploads from their last use, plans from when they
    were made."""

    artifacts_days: float | None = None
    models_days: float | None = None
    datasets_days: float | None = None
    plans_days: float | None = None


def expire(database: Database, objects: ObjectStore, retention: Retention) -> int:
    """Delete what has been kept for long enough; returns how many things. Safe to run anywhere, twice at once."""
    removed = gpu_time.forget_old(database)
    if retention.plans_days is not None:
        removed += _expire_plans(database, retention.plans_days)
    if retention.artifacts_days is not None:
        removed += _expire_artifacts(database, objects, retention.artifacts_days)
    if retention.models_days is not None:
        removed += _expire_uploads(database, objects, Model, retention.models_days)
    if retention.datasets_days is not None:
        removed += _expire_uploads(database, objects, Dataset, retention.datasets_days)
    return removed


def _expire_plans(database: Database, days: float) -> int:
    with database.transaction() as session:
        cutoff = dialect.now(session) - timedelta(days=days)
        due = select(Plan).where(Plan.finished_at < cutoff).limit(AT_ONCE).with_for_update(skip_locked=True)
        plans = session.scalars(due).all()
        for plan in plans:
            queue.forget(session, plan.id)
            session.delete(plan)
        return len(plans)


def _expire_artifacts(database: Database, objects: ObjectStore, days: float) -> int:
    removed: list[str] = []
    with database.transaction() as session:
        now = dialect.now(session)
        due: Select[tuple[Job]] = (
            select(Job)
            .where(Job.finished_at < now - timedelta(days=days), exists().where(Artifact.job_id == Job.id))
            .limit(AT_ONCE)
            .with_for_update(skip_locked=True, of=Job)
        )
        for job in session.scalars(due):
            session.execute(delete(Artifact).where(Artifact.job_id == job.id))
            job.expires_at = now
            touch(session, job, "job.expired", {"status": job.status.value}, now=now)
            removed.append(job_prefix(job.tenant_id, job.id))
    for prefix in removed:
        objects.delete_prefix(prefix)
    return len(removed)


def _expire_uploads(database: Database, objects: ObjectStore, table: type[Model] | type[Dataset], days: float) -> int:
    repository = ModelRepository if table is Model else DatasetRepository
    with database.read() as session:
        cutoff = dialect.now(session) - timedelta(days=days)
        uses = (Job.model_id if table is Model else Job.dataset_id) == table.id
        lately = exists().where(uses, Job.created_at >= cutoff)
        due = select(table.id, table.tenant_id).where(
            table.created_at < cutoff, table.status != InspectionStatus.inspecting, ~lately
        )
        found = session.execute(due.limit(AT_ONCE)).all()
    removed = 0
    for id, tenant_id in found:
        try:
            with database.transaction() as session:
                keys = repository(session, tenant_id).delete(id)
        except (Conflict, NotFound):  # used again, or gone, since it was found
            continue
        for key in keys:
            objects.delete(key)
        removed += 1
    return removed
