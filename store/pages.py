"""Cursor lists: ids are ordered by age, so a page is "the ids after this one" and costs the same at any depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

Order = Literal["asc", "desc"]
Row = TypeVar("Row")

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


@dataclass(frozen=True)
class Page(Generic[Row]):
    """`next` is the cursor (`after`) of the following page, None on the last one."""

    rows: Sequence[Row]
    has_more: bool
    next: Any | None


def coerced(limit: int) -> int:
    """How many entries a page has that was asked for with this limit."""
    return min(max(limit, 1), MAX_LIMIT)


def fetch_page(
    session: Session,
    statement: Select[tuple[Row]],
    cursor: InstrumentedAttribute[Any],
    *,
    limit: int = DEFAULT_LIMIT,
    after: Any | None = None,
    order: Order = "desc",
) -> Page[Row]:
    """One page of `statement` by `cursor` (a unique column); `limit` is coerced to 1..100, `after` is exclusive."""
    limit = coerced(limit)
    if after is not None:
        beyond: ColumnElement[bool] = cursor > after if order == "asc" else cursor < after
        statement = statement.where(beyond)
    statement = statement.order_by(cursor.asc() if order == "asc" else cursor.desc()).limit(limit + 1)
    rows = session.scalars(statement).all()
    has_more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows=rows, has_more=has_more, next=getattr(rows[-1], cursor.key) if has_more else None)
