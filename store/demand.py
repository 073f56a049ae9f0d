"""What may be claimed now, by whom, and who goes first.

A tenant with fewer pieces of work running goes before one with more, so that a hundred jobs of one tenant hold up
another's first for one job at most. Within that, a smaller priority goes first, then the older work.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, Exists, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased
from sqlalchemy.orm.util import AliasedClass

from store import dialect
from store.contract import InspectionStatus, WorkKind
from store.database import Database
from store.queue import ANY_QUEUE
from store.tables import Dataset, Job, Model, Plan, Work, WorkState


def most_urgent(kinds: Collection[WorkKind], queues: Collection[str], now: datetime) -> Select[tuple[str]]:
    """The id of the work of these kinds that goes first, locked; rows that others are claiming are passed over."""
    work = aliased(Work)
    busy = (
        select(Work.tenant_id, func.count().label("running"))
        .where(Work.state == WorkState.running, Work.kind.in_(list(kinds)))
        .group_by(Work.tenant_id)
        .subquery()
    )
    return (
        select(work.id)
        .outerjoin(busy, busy.c.tenant_id == work.tenant_id)
        .where(_claimable(work, kinds, now), work.queue.in_([ANY_QUEUE, *queues]))
        .order_by(func.coalesce(busy.c.running, 0), work.priority, work.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=work)
    )


def waiting_jobs(database: Database, limit: int) -> dict[str, int]:
    """How many jobs could be claimed now, by queue; counted no further than `limit` in all."""
    with database.read() as session:
        return _waiting_jobs(session, limit)


def _waiting_jobs(session: Session, limit: int) -> dict[str, int]:
    work = aliased(Work)
    found = select(work.queue).where(_claimable(work, [WorkKind.job], dialect.now(session))).limit(limit).subquery()
    return dict(session.execute(select(found.c.queue, func.count()).group_by(found.c.queue)).all())


def _claimable(
    work: type[Work] | AliasedClass[Work], kinds: Collection[WorkKind], now: datetime
) -> ColumnElement[bool]:
    """Queued, not waiting for a later time, and with its model and its dataset inspected and good."""
    inspections = work.kind.in_([WorkKind.inspect_model, WorkKind.inspect_dataset])
    return and_(
        work.state == WorkState.queued,
        work.kind.in_(list(kinds)),
        work.available_at <= now,
        or_(inspections, _ready(work, Job), _ready(work, Plan)),
    )


def _ready(work: type[Work] | AliasedClass[Work], user: type[Job] | type[Plan]) -> Exists:
    """Whether the work's row belongs to such a thing, and the uploads that it names are inspected and good."""
    return exists(
        select(user.id)
        .join(Model, Model.id == user.model_id)
        .outerjoin(Dataset, Dataset.id == user.dataset_id)
        .where(
            user.id == work.id,
            Model.status == InspectionStatus.ready,
            or_(user.dataset_id.is_(None), Dataset.status == InspectionStatus.ready),
        )
    )
