"""A job's checkpoint: the one stored file from which its next attempt goes on.

Every file has a key of its own, which carries the attempt; the job's row names the latest. Recording one is fenced like
every write of a worker, so a stale attempt can store garbage beside the checkpoint and never replace it. After the job's
end the row goes on naming the file until it is deleted, so that whoever ends a job need not reach the object store: the
attempt deletes it, and otherwise the housekeeper. Checkpoints do not count towards a tenant's quota: a job has one, for
as long as it lives.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from store import dialect
from store.claims import Claim
from store.database import Database
from store.objects import ObjectStore, StoredObject
from store.tables import Job, Work
from store.transitions import touch
from store.work import fenced

FORGIVING_ATTEMPTS = 100
"""A job that gets further each time may lose any number of workers; after so many attempts losses count as they do for
others, so that one that does nothing but write checkpoints and die comes to its end."""

AT_ONCE = 100
_NONE: dict[str, Any] = {
    "checkpoint_key": None,
    "checkpoint_size": None,
    "checkpoint_sha256": None,
    "checkpoint_attempt": None,
    "checkpoint_at": None,
}


def record_checkpoint(database: Database, claim: Claim, stored: StoredObject) -> str | None:
    """Make a stored file the job's checkpoint; returns the key of the one before, which is to be deleted now.

    The work got further, so workers that were lost over it before are forgiven. Raises LeaseLost.
    """
    with database.transaction() as session:
        fenced(session, claim, losses=0 if claim.attempt < FORGIVING_ATTEMPTS else Work.losses)
        job = session.get_one(Job, claim.id, with_for_update=True)
        before = job.checkpoint_key
        job.checkpoint_key, job.checkpoint_size, job.checkpoint_sha256 = stored.key, stored.size, stored.sha256
        job.checkpoint_attempt, job.checkpoint_at = claim.attempt, dialect.now(session)
        return None if before == stored.key else before


def note_resumed(database: Database, claim: Claim, *, step: str, number: int | None) -> None:
    """Say that this attempt goes on from the claim's checkpoint, with the event `job.resumed`. Raises LeaseLost.

    step: what it is in the middle of, or the last that was finished. number: how far inside it.
    """
    checkpoint = claim.checkpoint
    if checkpoint is None:
        return
    with database.transaction() as session:
        fenced(session, claim, attempt=claim.attempt)
        job = session.get_one(Job, claim.id, with_for_update=True)
        at = checkpoint.at.isoformat().replace("+00:00", "Z")
        job.resumed_from = {"attempt": checkpoint.attempt, "at": at, "step": step, "number": number}
        touch(
            session, job, "job.resumed", {"attempt": claim.attempt, "from": job.resumed_from}, now=dialect.now(session)
        )


def drop_checkpoints(database: Database, objects: ObjectStore, job_id: str | None = None) -> int:
    """Delete the checkpoints of jobs that have ended (of one such job, if it is named); returns how many.

    Safe to run anywhere, twice at once.
    """
    with database.read() as session:
        ended = select(Job.id, Job.checkpoint_key).where(Job.checkpoint_key.is_not(None), Job.finished_at.is_not(None))
        if job_id is not None:
            ended = ended.where(Job.id == job_id)
        found = session.execute(ended.limit(AT_ONCE)).all()
    for id, key in found:
        objects.delete(key)
        with database.transaction() as session:
            session.execute(update(Job).where(Job.id == id, Job.checkpoint_key == key).values(**_NONE))
    return len(found)
