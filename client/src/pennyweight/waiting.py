"""Waiting for something that takes long, through everything that passes: overload, resets, a service that restarts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import httpx

from pennyweight.errors import TOO_OFTEN, ApiError, JobFailed, ServiceUnreachable, is_passing

TERMINAL = ("succeeded", "failed", "cancelled")
RECONNECT_S = 120.0
"""A service that restarts in the middle of a wait is away for seconds; its jobs are not."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


class Deadline:
    """A moment after which nobody waits any more; None is never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def passed(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at

    def sleep(self, seconds: float) -> None:
        """Sleep so long, or until the deadline."""
        left_s = seconds if self._at is None else self._at - time.monotonic()
        time.sleep(max(0.0, min(seconds, left_s)))


def patiently(send: Callable[[], httpx.Response], deadline: Deadline) -> httpx.Response:
    """The first answer that is none of overload (429, 503) or absence. What the service says in `Retry-After` is kept to.

    Raises what still stood in the way when the deadline passed, and ServiceUnreachable or ApiError of a service that was
    away for RECONNECT_S; one that says 429 is there.
    """
    away_since: float | None = None
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return send()
        except (ServiceUnreachable, ApiError) as error:
            now = time.monotonic()
            busy = isinstance(error, ApiError) and error.code == TOO_OFTEN
            away_since = None if busy else away_since or now
            lost = away_since is not None and now - away_since > RECONNECT_S
            if not is_passing(error) or lost or deadline.passed:
                raise
            asked_s = error.retry_after_s if isinstance(error, ApiError) else None
        # Many that were refused together must not come back together.
        deadline.sleep(max(asked_s or 0.0, pause_s * random.uniform(0.75, 1.25)))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def retry_after(response: httpx.Response, default_s: float) -> float:
    """The seconds of `Retry-After`."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return default_s


def succeeded(job: dict[str, Any]) -> dict[str, Any]:
    """A job that has ended. Raises JobFailed unless it succeeded."""
    if job["status"] == "succeeded":
        return job
    if job["status"] == "cancelled":
        raise JobFailed(job["id"], {"code": "cancelled", "message": f"{job['id']} was cancelled."}, job)
    raise JobFailed(job["id"], job["error"], job)
