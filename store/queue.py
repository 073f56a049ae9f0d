"""The rows of `work`, seen from those who put things in: enqueue, lock, forget. Claiming is in `store.work`."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store import dialect
from store.contract import WorkKind
from store.errors import NotFound
from store.tables import Work, WorkState

ANY_QUEUE = "auto"
"""Work that any worker may claim; the other queues are named after devices, `cpu` and `gpu`."""

SHORT_WORK_MAX_RUNTIME_S = 300

_RESOURCES = {"job": "job", "mdl": "model", "ds": "dataset", "pln": "plan"}


def enqueue(
    session: Session,
    *,
    id: str,
    kind: WorkKind,
    tenant_id: str,
    queue: str = ANY_QUEUE,
    priority: int = 0,
    max_runtime_s: int = SHORT_WORK_MAX_RUNTIME_S,
) -> None:
    """Make the subject `id` claimable. Of equal priority, the oldest id goes first; a smaller priority goes before."""
    session.add(
        Work(
            id=id,
            kind=kind,
            tenant_id=tenant_id,
            queue=queue,
            priority=priority,
            state=WorkState.queued,
            attempt=0,
            losses=0,
            troubles=0,
            available_at=dialect.now(session),
            max_runtime_s=max_runtime_s,
        )
    )


def lock(session: Session, id: str) -> Work:
    """The work row, locked. Whoever changes or deletes a subject locks its work row first: one order, no deadlock.

    Raises NotFound where another transaction has deleted the subject meanwhile.
    """
    work = session.scalar(
        select(Work).where(Work.id == id).with_for_update(), execution_options={"populate_existing": True}
    )
    if work is None:
        raise NotFound(_RESOURCES[id.partition("_")[0]], id)
    return work


def forget(session: Session, id: str) -> None:
    """Drop the work row: a worker that holds it is fenced from now on."""
    session.execute(delete(Work).where(Work.id == id))
