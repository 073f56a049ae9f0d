"""How a client is told to poll: entity tags that say whether anything changed, and how soon to ask again."""

from __future__ import annotations

from datetime import datetime

from store.contract import InspectionStatus
from store.jobs import JobMark
from store.tables import Job

_PATIENCE = ((10.0, 1), (120.0, 2))
"""Younger than the first (seconds): ask again after the second. Demos take seconds, real jobs hours."""

_PATIENCE_OF_LONG_JOBS_S = 5

MOST_WAIT_S = 60
"""How long one request may ask to be held."""


def job_etag(job: Job | JobMark) -> str:
    """Weak: the version says that nothing a client can see has changed, links may be spelt differently."""
    return f'W/"{job.version}"'


def job_headers(job: Job | JobMark, now: datetime) -> dict[str, str]:
    """ETag, and Retry-After while there is something to wait for."""
    headers = {"ETag": job_etag(job), "Cache-Control": "private, no-cache"}
    if not job.status.terminal:
        age_s = (now - job.created_at).total_seconds()
        retry_s = next((wait_s for limit_s, wait_s in _PATIENCE if age_s < limit_s), _PATIENCE_OF_LONG_JOBS_S)
        headers["Retry-After"] = str(retry_s)
    return headers


def preferred_wait(prefer: str | None) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most MOST_WAIT_S; None where nothing is said that can be read."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.split(";")[0].partition("=")
        seconds = value.strip().strip('"')
        if name.strip().lower() == "wait" and seconds.isascii() and seconds.isdecimal():
            return min(int(seconds[:9]), MOST_WAIT_S)
    return None


def retry_after_inspection(status: InspectionStatus) -> dict[str, str]:
    return {"Retry-After": "1"} if status is InspectionStatus.inspecting else {}
