"""How the installation is doing, in numbers without names: what waits, what runs, who works, what is stored.

Everything is read from the database, so that any one process can tell of all of them. Nothing here names a tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from store import dialect
from store.contract import WorkKind
from store.tables import (
    Artifact,
    Dataset,
    DeliveryStatus,
    Model,
    Upload,
    WebhookDelivery,
    Work,
    Worker,
    WorkState,
)

WORKER_SILENCE_S = 90
"""A living worker says that it is there every 20 s or so."""


@dataclass(frozen=True)
class QueueState:
    """Work of one kind on one queue. oldest_s: how long the oldest claimable piece of `queued` has been waiting."""

    queue: str
    kind: WorkKind
    queued: int
    running: int
    oldest_s: float


@dataclass(frozen=True)
class WorkerGroup:
    """Workers that are alike. `live` ones were heard of within WORKER_SILENCE_S."""

    version: str
    sandbox_level: int
    sandbox_kind: str
    live: int
    silent: int


def queues(session: Session) -> Sequence[QueueState]:
    """What waits and what runs, by queue and kind; done work is not looked at (the index begins with the state)."""
    now = dialect.now(session)
    waiting = Work.state == WorkState.queued
    oldest = func.min(case((waiting & (Work.available_at <= now), Work.available_at)))
    rows = session.execute(
        select(
            Work.queue,
            Work.kind,
            func.count(case((waiting, 1))),
            func.count(case((Work.state == WorkState.running, 1))),
            oldest,
        )
        .where(Work.state.in_([WorkState.queued, WorkState.running]))
        .group_by(Work.queue, Work.kind)
        .order_by(Work.queue, Work.kind)
    )
    return [
        QueueState(queue, kind, queued, running, 0.0 if since is None else max(0.0, (now - since).total_seconds()))
        for queue, kind, queued, running, since in rows
    ]


def workers(session: Session) -> Sequence[WorkerGroup]:
    """Every worker that is still remembered, alike ones together."""
    level = Worker.catalogue["sandbox_level"].as_integer()
    kind = Worker.catalogue["sandbox_kind"].as_string()
    heard = Worker.seen_at >= dialect.now(session) - timedelta(seconds=WORKER_SILENCE_S)
    rows = session.execute(
        select(Worker.version, level, kind, func.count(case((heard, 1))), func.count())
        .group_by(Worker.version, level, kind)
        .order_by(Worker.version, level, kind)
    )
    return [
        WorkerGroup(version, level or 0, kind or "unknown", live, known - live)
        for version, level, kind, live, known in rows
    ]


@dataclass(frozen=True)
class WebhookState:
    """Messages that are not delivered yet. late_s: how long the one that waits longest should have been tried."""

    pending: int
    late_s: float


def webhooks(session: Session) -> WebhookState:
    pending = WebhookDelivery.status == DeliveryStatus.pending
    count, earliest = session.execute(
        select(func.count(), func.min(WebhookDelivery.next_attempt_at)).where(pending)
    ).one()
    late_s = 0.0 if earliest is None else max(0.0, (dialect.now(session) - earliest).total_seconds())
    return WebhookState(count, late_s)


def stored_bytes(session: Session) -> dict[str, int]:
    """Bytes of the objects that rows refer to, by what they are. Reads every row: ask now and then, not every second."""
    sums = {
        "models": select(func.sum(Model.size_bytes)),
        "datasets": select(func.sum(Dataset.size_bytes)),
        "artifacts": select(func.sum(Artifact.size)),
        "uploads": select(func.sum(Upload.size_bytes)).where(Upload.completed_at.is_(None)),
    }
    return {kind: int(session.scalar(statement) or 0) for kind, statement in sums.items()}
