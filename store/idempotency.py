"""Idempotency keys of one tenant: a request that is sent twice happens once, and both get the same answer.

A row is first a reservation, so that a second request with the key is told to wait while the first is at work. In the
transaction that creates, it becomes the answer. The reservation is a courtesy that ends by itself (its process may have
been killed); that nothing is created twice rests on `settle` alone, which every creating transaction calls first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store import dialect
from store.database import Database
from store.errors import IdempotencyKeyReused, RequestInFlight
from store.tables import IdempotencyKey

KEPT_S = 24 * 3600.0
RESERVED_S = 60.0
"""How long a request that neither ended nor failed keeps others from trying: as long as a killed process may matter."""

EXPIRED_AT_ONCE = 1000


@dataclass(frozen=True)
class KeptAnswer:
    """What the first request was told. `body` is JSON text; `resource_id` is what it created."""

    status: int
    headers: Mapping[str, str]
    body: str
    resource_id: str


class IdempotencyRepository:
    """`operation` is the method and path of the request; it and the body's `fingerprint` must be the same each time."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def reserve(self, key: str, operation: str, fingerprint: str | None, holder: str) -> KeptAnswer | None:
        """Take the key for a request that begins, or return the answer that it already has.

        `fingerprint` is None while the body has not arrived: then an answer is returned by `settle` only. `holder` is
        this request's own random name. Raises IdempotencyKeyReused, and RequestInFlight.
        """
        now = dialect.now(self._session)
        row = self._locked(key)
        if row.status is not None:
            return None if fingerprint is None else _answer(row, operation, fingerprint)
        if row.holder is not None and row.reserved_until is not None and row.reserved_until > now:
            raise RequestInFlight(key)
        row.operation, row.holder, row.reserved_until = operation, holder, now + timedelta(seconds=RESERVED_S)
        self._session.flush()
        return None

    def settle(self, key: str, operation: str, fingerprint: str) -> KeptAnswer | None:
        """The answer that a request with this key has had by now, or None: then it is this transaction's to create, and
        the key is locked until its end. Raises IdempotencyKeyReused."""
        row = self._locked(key)
        return None if row.status is None else _answer(row, operation, fingerprint)

    def keep(self, key: str, operation: str, fingerprint: str, answer: KeptAnswer) -> None:
        """Keep the answer for 24 hours; the same transaction has called `settle`."""
        row = self._locked(key)
        row.operation, row.fingerprint = operation, fingerprint
        row.status, row.headers, row.body = answer.status, dict(answer.headers), answer.body
        row.resource_id = answer.resource_id
        row.holder = row.reserved_until = None
        row.expires_at = dialect.now(self._session) + timedelta(seconds=KEPT_S)
        self._session.flush()

    def release(self, key: str, holder: str) -> None:
        """Give back a reservation of a request that failed: nothing was created, so the key may be used again."""
        self._session.execute(
            delete(IdempotencyKey).where(
                IdempotencyKey.tenant_id == self._tenant_id,
                IdempotencyKey.key == key,
                IdempotencyKey.holder == holder,
                IdempotencyKey.status.is_(None),
            )
        )

    def _locked(self, key: str) -> IdempotencyKey:
        """The row of the key, made where there is none or an expired one, locked until the transaction ends."""
        now = dialect.now(self._session)
        mine = (IdempotencyKey.tenant_id == self._tenant_id, IdempotencyKey.key == key)
        self._session.execute(delete(IdempotencyKey).where(*mine, IdempotencyKey.expires_at <= now))
        statement = select(IdempotencyKey).where(*mine).with_for_update()
        fresh = {"operation": "", "created_at": now, "expires_at": now + timedelta(seconds=KEPT_S)}
        while True:  # a reservation may be given back between the two statements
            absent = dialect.insert(self._session, IdempotencyKey).values(tenant_id=self._tenant_id, key=key, **fresh)
            self._session.execute(absent.on_conflict_do_nothing())
            row = self._session.scalar(statement, execution_options={"populate_existing": True})
            if row is not None:
                return row


def _answer(row: IdempotencyKey, operation: str, fingerprint: str) -> KeptAnswer:
    if (row.operation, row.fingerprint) != (operation, fingerprint):
        raise IdempotencyKeyReused(row.key)
    return KeptAnswer(row.status or 0, row.headers or {}, row.body or "", row.resource_id or "")


def expire_idempotency_keys(database: Database) -> int:
    """Forget keys whose 24 hours are over; returns how many. Safe to run anywhere, twice at once."""
    with database.transaction() as session:
        due = (
            select(IdempotencyKey.tenant_id, IdempotencyKey.key)
            .where(IdempotencyKey.expires_at <= dialect.now(session))
            .limit(EXPIRED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        rows = session.execute(due).all()
        for tenant_id, key in rows:
            session.execute(
                delete(IdempotencyKey).where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
            )
        return len(rows)
