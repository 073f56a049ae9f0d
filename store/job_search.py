"""Which jobs a filtered page shows, found in indexes alone, so that it costs the same however many jobs there are.

Every status is a search of its own that ends when its page is full, because no index is in the order of ids over several
statuses. With labels, the rows of the rarest one are gone through, and the others are asked about each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, exists, func, literal, select, union_all
from sqlalchemy.orm import Session, aliased

from store.contract import JobStatus
from store.pages import Order
from store.tables import Job, JobLabel

_COMMON = 5000
"""Labels with more jobs than this are all alike: counting further would cost more than the search."""


def found_ids(
    session: Session,
    tenant_id: str,
    statuses: Sequence[JobStatus],
    labels: Mapping[str, str],
    *,
    count: int,
    after: str | None,
    order: Order,
) -> list[str]:
    """The ids of the first `count` jobs beyond `after` that have one of the statuses (any, if there are none) and all of
    the labels."""
    rarest, *others = _rarest_first(session, tenant_id, labels) or [None]
    table, id = (Job, Job.id) if rarest is None else (JobLabel, JobLabel.job_id)
    wanted: list[ColumnElement[bool]] = [table.tenant_id == tenant_id]
    if rarest is not None:
        wanted += [JobLabel.key == rarest, JobLabel.value == labels[rarest]]
    for key in others:
        other = aliased(JobLabel)
        wanted.append(exists().where(other.job_id == id, other.key == key, other.value == labels[key]))
    if after is not None:
        wanted.append(id > after if order == "asc" else id < after)
    in_order = id.asc() if order == "asc" else id.desc()
    each = [[table.status == status] for status in set(statuses)] or [[]]
    searches = [select(id.label("id")).where(*wanted, *also).order_by(in_order).limit(count) for also in each]
    found = session.scalars(union_all(*(select(search.subquery().c.id) for search in searches)))
    return sorted(found, reverse=order == "desc")[:count]


def _rarest_first(session: Session, tenant_id: str, labels: Mapping[str, str]) -> list[str]:
    if len(labels) < 2:
        return list(labels)

    def jobs(key: str) -> int:
        mine = (JobLabel.tenant_id == tenant_id, JobLabel.key == key, JobLabel.value == labels[key])
        some = select(literal(1)).where(*mine).limit(_COMMON).subquery()
        return session.scalar(select(func.count()).select_from(some)) or 0

    return sorted(labels, key=jobs)
