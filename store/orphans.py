"""Objects that no row refers to: what a process left that was killed between storing a file and committing its row.

Only objects of an age at which that commit must have happened or failed are looked at, and only where the layout says
whose they are. Deleting one twice is harmless, so any number of sweepers may run at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.database import Database
from store.layout import Owner, owner_of
from store.objects import ObjectStore
from store.tables import Artifact, Dataset, Job, Model, Upload, Work, WorkState

BATCH = 500
"""Objects looked up in one short read."""


def remove_orphans(database: Database, objects: ObjectStore, *, older_than_s: float) -> int:
    """Delete them; returns how many there were."""
    removed = 0
    for keys in _batches(objects.keys(older_than_s=older_than_s)):
        owners = {key: owner for key in keys if (owner := owner_of(key)) is not None}
        with database.read() as session:
            orphans = _orphans(session, owners)
        for key in orphans:
            objects.delete(key)
        removed += len(orphans)
    return removed


def _orphans(session: Session, owners: dict[str, Owner]) -> list[str]:
    uploads = [owner.id for owner in owners.values() if owner.kind != "jobs"]
    jobs = [owner.id for owner in owners.values() if owner.kind == "jobs"]
    referred = set(session.scalars(select(Model.object_key).where(Model.id.in_(uploads))))
    referred |= set(session.scalars(select(Dataset.object_key).where(Dataset.id.in_(uploads))))
    # Its row follows the object, whose age S3 counts from the upload's beginning.
    referred |= set(
        session.scalars(select(Upload.object_key).where(Upload.resource_id.in_(uploads), Upload.completed_at.is_(None)))
    )
    referred |= set(session.scalars(select(Artifact.object_key).where(Artifact.job_id.in_(jobs))))
    # What an attempt is storing at this moment gets its rows when it finishes.
    unfinished = set(
        session.scalars(
            select(Job.id).join(Work, Work.id == Job.id).where(Job.id.in_(jobs), Work.state != WorkState.done)
        )
    )
    return [key for key, owner in owners.items() if key not in referred and owner.id not in unfinished]


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(keys)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch
