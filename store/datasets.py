"""Datasets of one tenant: an uploaded file of images, how to read it, and what inspection found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from store import dialect, queue
from store.contract import InspectionStatus, WorkKind
from store.errors import NotFound
from store.pages import DEFAULT_LIMIT, Order, Page, fetch_page
from store.tables import Dataset
from store.uses import require_unused


class DatasetRepository:
    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(
        self,
        *,
        id: str,
        filename: str,
        name: str,
        object_key: str,
        size_bytes: int,
        sha256: str,
        normalization: Mapping[str, Any] | None = None,
        scale: float | None = None,
        convert: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """A new dataset, `inspecting`, with its inspection queued in the same transaction. `id` is `new_id("ds")`."""
        dataset = Dataset(
            id=id,
            tenant_id=self._tenant_id,
            name=name,
            filename=filename,
            object_key=object_key,
            size_bytes=size_bytes,
            sha256=sha256,
            normalization=None if normalization is None else dict(normalization),
            scale=scale,
            convert=None if convert is None else dict(convert),
            status=InspectionStatus.inspecting,
            created_at=dialect.now(self._session),
        )
        self._session.add(dataset)
        queue.enqueue(self._session, id=id, kind=WorkKind.inspect_dataset, tenant_id=self._tenant_id)
        self._session.flush()
        return dataset

    def get(self, id: str, *, param: str | None = None) -> Dataset:
        """Raises NotFound (with `param`, the JSON pointer of the field that named the id)."""
        dataset = self._session.scalar(self._mine().where(Dataset.id == id))
        if dataset is None:
            raise NotFound("dataset", id, param)
        return dataset

    def list(self, limit: int = DEFAULT_LIMIT, after: str | None = None, order: Order = "desc") -> Page[Dataset]:
        return fetch_page(self._session, self._mine(), Dataset.id, limit=limit, after=after, order=order)

    def delete(self, id: str) -> list[str]:
        """Delete the row; returns the object keys to remove after the commit. Raises Conflict while something live uses it."""
        self.get(id)
        queue.lock(self._session, id)
        dataset = self._session.get_one(Dataset, id, with_for_update=True, populate_existing=True)
        require_unused(self._session, Dataset, id)
        queue.forget(self._session, id)
        self._session.delete(dataset)
        self._session.flush()
        return [dataset.object_key]

    def _mine(self) -> Select[tuple[Dataset]]:
        return select(Dataset).where(Dataset.tenant_id == self._tenant_id)
