"""What can go wrong between a caller and a Pennyweight service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PennyweightError(Exception):
    """Base of every error of this client."""


class ServiceUnreachable(PennyweightError):
    """No answer from the service."""


class ApiError(PennyweightError):
    """The service refused a request: its problem document (RFC 9457), field errors included."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        self.code: str = str(problem.get("code") or status)
        self.request_id: str | None = problem.get("request_id")
        lines = [str(problem.get("detail") or problem.get("title") or f"HTTP {status}")]
        lines += [f"  {e.get('pointer') or '/'}: {e.get('detail')}" for e in problem.get("errors") or []]
        super().__init__("\n".join(lines))


class JobFailed(PennyweightError):
    """A job ended without a result. `code` is one of API.md's error codes, or `cancelled`."""

    def __init__(self, job_id: str, error: Mapping[str, Any]) -> None:
        self.job_id = job_id
        self.error = dict(error)
        self.code: str = str(error.get("code", "internal"))
        super().__init__(str(error.get("message", "The job failed.")))


class DownloadCorrupt(PennyweightError):
    """An artifact's bytes do not have the digest that the service announced."""
