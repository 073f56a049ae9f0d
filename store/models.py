"""Models of one tenant: an uploaded file, what was said about it, and what inspection found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from store import dialect, queue
from store.contract import InspectionStatus, WorkKind
from store.errors import NotFound
from store.pages import DEFAULT_LIMIT, Order, Page, fetch_page
from store.plans import forget_plans
from store.tables import Model
from store.uses import require_unused


class ModelRepository:
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
        architecture: str | None = None,
        architecture_args: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    ) -> Model:
        """A new model, `inspecting`, with its inspection queued in the same transaction. `id` is `new_id("mdl")`."""
        model = Model(
            id=id,
            tenant_id=self._tenant_id,
            name=name,
            filename=filename,
            object_key=object_key,
            size_bytes=size_bytes,
            sha256=sha256,
            format=None,
            architecture=architecture,
            architecture_args=dict(architecture_args or {}),
            input_shape=_plain_shape(input_shape),
            status=InspectionStatus.inspecting,
            created_at=dialect.now(self._session),
        )
        self._session.add(model)
        queue.enqueue(self._session, id=id, kind=WorkKind.inspect_model, tenant_id=self._tenant_id)
        self._session.flush()
        return model

    def get(self, id: str, *, param: str | None = None) -> Model:
        """Raises NotFound (with `param`, the JSON pointer of the field that named the id)."""
        model = self._session.scalar(self._mine().where(Model.id == id))
        if model is None:
            raise NotFound("model", id, param)
        return model

    def list(self, limit: int = DEFAULT_LIMIT, after: str | None = None, order: Order = "desc") -> Page[Model]:
        return fetch_page(self._session, self._mine(), Model.id, limit=limit, after=after, order=order)

    def delete(self, id: str) -> list[str]:
        """Delete the row and the model's plans; returns the object keys to remove after the commit. Raises Conflict while something live uses it."""
        self.get(id)
        queue.lock(self._session, id)
        model = self._session.get_one(Model, id, with_for_update=True, populate_existing=True)
        require_unused(self._session, Model, id)
        forget_plans(self._session, id)
        queue.forget(self._session, id)
        self._session.delete(model)
        self._session.flush()
        return [model.object_key]

    def _mine(self) -> Select[tuple[Model]]:
        return select(Model).where(Model.tenant_id == self._tenant_id)


def _plain_shape(shape: Sequence[int] | Mapping[str, Sequence[int]] | None) -> list[int] | dict[str, list[int]] | None:
    if shape is None:
        return None
    return {name: list(dims) for name, dims in shape.items()} if isinstance(shape, Mapping) else list(shape)
