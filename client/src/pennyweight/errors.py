"""What can go wrong between a caller and a Pennyweight service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx


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


def api_error(response: httpx.Response) -> ApiError:
    """The refusal that a response is."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        request = f"{response.request.method} {response.request.url.copy_with(query=None)}"
        problem = {"detail": f"{request} answered {response.status_code} without a problem document."}
    return ApiError(response.status_code, problem)


class JobFailed(PennyweightError):
    """A job ended without a result. `code` is one of API.md's error codes, or `cancelled`."""

    def __init__(self, job_id: str, error: Mapping[str, Any]) -> None:
        self.job_id = job_id
        self.error = dict(error)
        self.code: str = str(error.get("code", "internal"))
        super().__init__(str(error.get("message", "The job failed.")))


class DownloadCorrupt(PennyweightError):
    """An artifact's bytes do not have the digest that the service announced."""
