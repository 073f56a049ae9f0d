"""Webhook messages: written with the change that they tell of, claimed by whoever sends, settled with what came of it.

A claim is a lease, in database time, on one attempt: it moves `next_attempt_at` to the end of the lease, so that what a
killed sender held is due again then. (`round`, `attempts`) fence: an outcome of an older attempt changes nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, or_, select
from sqlalchemy.orm import Session

from store import dialect, tallies
from store.contract import WEBHOOK_EVENTS
from store.database import Database
from store.identifiers import new_id
from store.tables import DeliveryStatus, EndpointStatus, Job, WebhookDelivery, WebhookEndpoint
from store.tallies import TallyName
from store.webhooks import disable

RETRY_AFTER_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
"""Pauses after the first, second, … failed attempt: the schedule that Standard Webhooks recommends."""

JITTER = 0.2
"""A pause is longer by up to this fraction, so that a receiver that was away is not met by everything at once."""

DISABLED_AFTER_S = 5 * 24 * 3600.0
"""An endpoint that has answered nothing well for so long is disabled."""

LEASE_S = 120.0
KEPT_S = 30 * 24 * 3600.0
EXPIRED_AT_ONCE = 1000
_MAX_ERROR = 500


@dataclass(frozen=True)
class DueDelivery:
    """A message to send now."""

    id: str
    round: int
    attempts: int
    url: str
    secret: str
    body: str


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt: a status, or an error in words. `retry_after_s` is what the receiver asked for."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def announce(session: Session, job: Job, event: str, *, now: datetime) -> None:
    """Write the messages about this event of `job`, in the transaction that changes it."""
    if event not in WEBHOOK_EVENTS:
        return
    endpoints = session.scalars(
        select(WebhookEndpoint).where(
            WebhookEndpoint.tenant_id == job.tenant_id,
            WebhookEndpoint.status == EndpointStatus.active,
            or_(WebhookEndpoint.job_id.is_(None), WebhookEndpoint.job_id == job.id),
        )
    ).all()
    listening = [endpoint for endpoint in endpoints if event in endpoint.events]
    if not listening:
        return
    body = json.dumps({"type": event, "timestamp": _text(now), "data": _data(job)}, ensure_ascii=False)
    session.add_all(
        WebhookDelivery(
            id=new_id("evt"),
            endpoint_id=endpoint.id,
            job_id=job.id,
            type=event,
            body=body,
            status=DeliveryStatus.pending,
            round=0,
            attempts=0,
            next_attempt_at=now,
            created_at=now,
        )
        for endpoint in listening
    )


def _data(job: Job) -> dict[str, Any]:
    """The job in short; GET tells the rest."""
    result = job.result or {}
    return {
        "id": job.id,
        "object": "job",
        "status": job.status.value,
        "name": job.name,
        "labels": job.labels,
        "model": job.model_id,
        "dataset": job.dataset_id,
        "retry_of": job.retry_of,
        "attempt": job.attempt,
        "created_at": _text(job.created_at),
        "started_at": _text(job.started_at),
        "finished_at": _text(job.finished_at),
        "met": result.get("met"),
        "constraints": result.get("constraints"),
        "error": None if job.error is None else {key: job.error.get(key) for key in ("code", "message")},
    }


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def claim_deliveries(database: Database, limit: int, *, lease_s: float = LEASE_S) -> Sequence[DueDelivery]:
    """Take up to `limit` messages that are due. Safe to call from any number of senders at once."""
    with database.read() as session:
        if not session.scalar(select(exists().where(*_due(dialect.now(session))))):
            return []
    with database.transaction() as session:
        now = dialect.now(session)
        rows = session.scalars(
            select(WebhookDelivery)
            .where(*_due(now))
            .order_by(WebhookDelivery.next_attempt_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        claimed = []
        for row in rows:
            endpoint = session.get_one(WebhookEndpoint, row.endpoint_id)
            row.attempts += 1
            row.last_attempt_at, row.next_attempt_at = now, now + timedelta(seconds=lease_s)
            claimed.append(DueDelivery(row.id, row.round, row.attempts, endpoint.url, endpoint.secret, row.body))
        return claimed


def _due(now: datetime) -> tuple[Any, ...]:
    return WebhookDelivery.status == DeliveryStatus.pending, WebhookDelivery.next_attempt_at <= now


def settle(database: Database, due: DueDelivery, outcome: Outcome) -> DeliveryStatus | None:
    """Write down what came of an attempt, and when the next one is; None if this attempt counts no longer."""
    with database.transaction() as session:
        now = dialect.now(session)
        # The endpoint first, as deletion does: one order, no deadlock.
        endpoint_of = select(WebhookDelivery.endpoint_id).where(WebhookDelivery.id == due.id).scalar_subquery()
        endpoint = session.scalar(select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_of).with_for_update())
        row = session.get(WebhookDelivery, due.id, with_for_update=True)
        if endpoint is None or row is None or row.status is not DeliveryStatus.pending:
            return None
        if (row.round, row.attempts) != (due.round, due.attempts):
            return None
        _note(session, endpoint, row, outcome, now)
        result = "retry" if row.status is DeliveryStatus.pending else row.status.value
        tallies.count(session, TallyName.webhook_attempts, result=result)
        return row.status


def _note(session: Session, endpoint: WebhookEndpoint, row: WebhookDelivery, outcome: Outcome, now: datetime) -> None:
    """What an attempt means for its message and for the endpoint."""
    row.last_status = outcome.status
    row.last_error = None if outcome.error is None else outcome.error[:_MAX_ERROR]
    if outcome.delivered:
        row.status, row.delivered_at, endpoint.failing_since = DeliveryStatus.delivered, now, None
        return
    endpoint.failing_since = endpoint.failing_since or now
    if row.attempts > len(RETRY_AFTER_S):
        row.status = DeliveryStatus.failed
    else:
        pause_s = RETRY_AFTER_S[row.attempts - 1] * (1 + random.uniform(0, JITTER))
        asked_s = min(outcome.retry_after_s or 0.0, RETRY_AFTER_S[-1])
        row.next_attempt_at = now + timedelta(seconds=max(pause_s, asked_s))
    if outcome.status == 410:
        row.status = DeliveryStatus.failed
        disable(session, endpoint, "It answered 410 Gone.")
    elif now - endpoint.failing_since > timedelta(seconds=DISABLED_AFTER_S):
        row.status = DeliveryStatus.failed
        disable(session, endpoint, f"Nothing was delivered for {DISABLED_AFTER_S / 86400:.0f} days.")


def expire_deliveries(database: Database) -> int:
    """Forget messages that ended a month ago; returns how many. Safe to run anywhere, twice at once."""
    with database.transaction() as session:
        old = dialect.now(session) - timedelta(seconds=KEPT_S)
        ids = session.scalars(
            select(WebhookDelivery.id)
            .where(WebhookDelivery.created_at < old, WebhookDelivery.status != DeliveryStatus.pending)
            .limit(EXPIRED_AT_ONCE)
            .with_for_update(skip_locked=True)
        ).all()
        session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(ids)))
        return len(ids)
