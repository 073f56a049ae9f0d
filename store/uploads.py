"""Uploads in parts of one tenant: what was announced, and what it becomes. The bytes are the object store's business."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from store import dialect
from store.database import Database
from store.errors import Conflict, NotFound
from store.objects import ObjectStore
from store.pages import DEFAULT_LIMIT, Order, Page, fetch_page
from store.parts import PartUpload
from store.tables import Upload

logger = logging.getLogger(__name__)

EXPIRED_AT_ONCE = 100

Purpose = Literal["model", "dataset"]


class UploadRepository:
    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(
        self,
        *,
        id: str,
        purpose: Purpose,
        resource_id: str,
        filename: str,
        fields: Mapping[str, Any],
        sha256: str | None,
        parts: PartUpload,
        expires_s: float,
    ) -> Upload:
        """A new upload. `id` is `new_id("upl")`, `fields` is JSON."""
        now = dialect.now(self._session)
        upload = Upload(
            id=id,
            tenant_id=self._tenant_id,
            purpose=purpose,
            resource_id=resource_id,
            filename=filename,
            fields=dict(fields),
            size_bytes=parts.size,
            part_size_bytes=parts.part_size,
            sha256=sha256,
            object_key=parts.key,
            handle=parts.handle,
            created_at=now,
            expires_at=now + timedelta(seconds=expires_s),
        )
        self._session.add(upload)
        self._session.flush()
        return upload

    def get(self, id: str) -> Upload:
        """Raises NotFound, for one that has expired too."""
        return self._found(self._mine().where(Upload.id == id), id)

    def list(
        self,
        sha256: str | None = None,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        order: Order = "desc",
    ) -> Page[Upload]:
        """Uploads that are not completed yet; those that announced this digest, if one is given."""
        statement = self._mine().where(Upload.completed_at.is_(None))
        if sha256 is not None:
            statement = statement.where(Upload.sha256 == sha256)
        return fetch_page(self._session, statement, Upload.id, limit=limit, after=after, order=order)

    def lock(self, id: str) -> Upload:
        """As `get`, held until the end of the transaction."""
        return self._found(self._mine().where(Upload.id == id).with_for_update(), id)

    def complete(self, upload: Upload) -> None:
        """A locked upload has become what it was for."""
        upload.completed_at = dialect.now(self._session)
        self._session.flush()

    def delete(self, id: str) -> Upload:
        """Forget an upload; its parts are to be aborted after the commit. Raises Conflict `upload_gone` for a completed one."""
        upload = self.lock(id)
        if upload.completed_at is not None:
            raise Conflict("upload_gone", f"The upload {id} is complete: delete {upload.resource_id} instead.")
        self._session.delete(upload)
        self._session.flush()
        return upload

    def _mine(self) -> Select[tuple[Upload]]:
        return select(Upload).where(Upload.tenant_id == self._tenant_id, Upload.expires_at > dialect.now(self._session))

    def _found(self, statement: Select[tuple[Upload]], id: str) -> Upload:
        upload = self._session.scalar(statement, execution_options={"populate_existing": True})
        if upload is None:
            raise NotFound("upload", id)
        return upload


def parts_of(upload: Upload) -> PartUpload:
    """The upload as the object store knows it."""
    return PartUpload(upload.object_key, upload.handle, upload.size_bytes, upload.part_size_bytes)


def expire_uploads(database: Database, objects: ObjectStore) -> int:
    """Forget uploads whose time is over, with their parts; returns how many. Safe to run anywhere, twice at once.

    The bytes go first: what fails half-way is found again. An object that nobody registered, because a process was
    killed just before, goes too.
    """
    with database.read() as session:
        due = session.scalars(
            select(Upload).where(Upload.expires_at <= dialect.now(session)).order_by(Upload.id).limit(EXPIRED_AT_ONCE)
        ).all()
    for upload in due:
        if upload.completed_at is None:
            objects.parts.abort(parts_of(upload))
        with database.transaction() as session:
            found = session.scalar(select(Upload).where(Upload.id == upload.id).with_for_update())
            if found is None:
                continue
            unregistered = found.completed_at is None
            session.delete(found)
        if unregistered:
            objects.delete(upload.object_key)
    return len(due)
