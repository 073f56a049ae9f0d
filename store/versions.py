"""Whether things have changed, for many at once: what whoever waits for them looks at."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sqlalchemy import Connection, Select, select

from store.contract import PlanStatus
from store.tables import Job, Plan

AT_ONCE = 500
"""Ids in one query; SQLite takes no list of any length."""


def versions(connection: Connection, ids: Collection[str]) -> dict[str, int | str]:
    """By the id of a job or plan, a value that differs after every change that a client can see. Ids that are gone are
    left out."""
    found: dict[str, int | str] = {}
    for some in _portions([id for id in ids if id.startswith("job_")]):
        found.update((id, version) for id, version in connection.execute(_jobs(some)))
    for some in _portions([id for id in ids if id.startswith("pln_")]):
        found.update((id, status.value) for id, status in connection.execute(_plans(some)))
    return found


def _jobs(ids: list[str]) -> Select[tuple[str, int]]:
    return select(Job.id, Job.version).where(Job.id.in_(ids))


def _plans(ids: list[str]) -> Select[tuple[str, PlanStatus]]:
    return select(Plan.id, Plan.status).where(Plan.id.in_(ids))


def _portions(ids: list[str]) -> Iterator[list[str]]:
    return (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))
