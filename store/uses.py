"""Who uses an upload: a new job or plan names its model and dataset, and while it is not over they stay.

Both sides lock the upload's row, so that a deletion or a rejection in flight either is seen by the newcomer or sees it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from store.contract import ErrorInfo, InspectionStatus, JobRequest, JobStatus, PlanStatus
from store.errors import Conflict, DatasetRejected, DatasetUnlabelled, ModelRejected, NotFound
from store.tables import Dataset, Job, Model, Plan

LIVE = tuple(status for status in JobStatus if not status.terminal)


def require_uploads(session: Session, tenant_id: str, request: JobRequest) -> None:
    """Hold the model and the dataset that `request` names, until the transaction ends.

    They may still be inspecting. Raises NotFound (param /model or /dataset), ModelRejected, DatasetRejected, and
    DatasetUnlabelled where labels are needed and inspection has found none.
    """
    _require(session, tenant_id, Model, "model", ModelRejected, request.model)
    if request.dataset is None:
        return
    dataset: Dataset = _require(session, tenant_id, Dataset, "dataset", DatasetRejected, request.dataset)
    if dataset.status is InspectionStatus.ready and dataset.classes is None and request.label_users:
        raise DatasetUnlabelled(request.dataset, request.label_users)


def require_unused(session: Session, table: type[Model] | type[Dataset], id: str) -> None:
    """Raises Conflict `in_use` while a live job or a plan in the making uses the upload."""
    resource = "model" if table is Model else "dataset"
    for kind, user, over in (
        ("job", Job, "wait for it to end, or cancel it"),
        ("plan", Plan, "it will be ready in a moment"),
    ):
        if (
            user_id := session.scalar(select(user.id).where(_names(user, table, id), _is_live(user)).limit(1))
        ) is not None:
            raise Conflict("in_use", f"The {resource} {id} is used by the {kind} {user_id}: {over}.")


def _names(user: type[Job] | type[Plan], table: type[Model] | type[Dataset], id: str) -> ColumnElement[bool]:
    return (user.model_id if table is Model else user.dataset_id) == id


def _is_live(user: type[Job] | type[Plan]) -> ColumnElement[bool]:
    return Job.status.in_(LIVE) if user is Job else Plan.status == PlanStatus.planning


def _require(
    session: Session,
    tenant_id: str,
    table: type[Model] | type[Dataset],
    resource: str,
    rejected: type[ModelRejected] | type[DatasetRejected],
    id: str,
) -> Any:
    upload = session.scalar(
        select(table).where(table.tenant_id == tenant_id, table.id == id).with_for_update(read=True),
        execution_options={"populate_existing": True},
    )
    if upload is None:
        raise NotFound(resource, id, rejected.param)
    if upload.status is InspectionStatus.rejected:
        raise rejected(id, ErrorInfo.model_validate(upload.error))
    return upload
