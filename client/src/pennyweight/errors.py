"""What can go wrong between a caller and a Pennyweight service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

IN_FLIGHT = "idempotency_in_flight"
TOO_OFTEN = "too_many_requests"


class PennyweightError(Exception):
    """Base of every error of this client."""


class InvalidAddress(PennyweightError, ValueError):
    """An address or an id that cannot be part of a request."""


class ServiceUnreachable(PennyweightError):
    """No answer from the service."""


class ApiError(PennyweightError):
    """The service refused a request: its problem document (RFC 9457), field errors included."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        """retry_after_s: how long the service asks to be left alone."""
        self.status = status
        self.retry_after_s = retry_after_s
        self.problem = dict(problem)
        self.code: str = str(problem.get("code") or status)
        self.request_id: str | None = problem.get("request_id")
        super().__init__(_words(problem) or f"HTTP {status}")


def is_passing(error: ServiceUnreachable | ApiError) -> bool:
    """Whether the same request may well succeed in a moment."""
    return (
        isinstance(error, ServiceUnreachable) or error.status in (502, 503, 504) or error.code in (IN_FLIGHT, TOO_OFTEN)
    )


def api_error(response: httpx.Response) -> ApiError:
    """The refusal that a response is."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        request = f"{response.request.method} {response.request.url.copy_with(query=None)}"
        problem = {"detail": f"{request} answered {response.status_code} without a problem document."}
    asked = response.headers.get("Retry-After", "")
    return ApiError(response.status_code, problem, float(asked) if asked.isdecimal() else None)


class JobFailed(PennyweightError):
    """A job, a plan or an inspection ended without a result. `code` is one of the API's error codes, or `cancelled`;
    `resource` is what ended, as the service last showed it."""

    def __init__(self, job_id: str, error: Mapping[str, Any], resource: Mapping[str, Any] | None = None) -> None:
        self.job_id = job_id
        self.error = dict(error)
        self.resource = None if resource is None else dict(resource)
        self.code: str = str(error.get("code", "internal"))
        super().__init__(str(error.get("message", "The job failed.")))


def _words(problem: Mapping[str, Any]) -> str:
    """The problem for a person, nothing twice: its `detail` tells of the first field already."""
    errors = problem.get("errors") or []
    detail = str(problem.get("detail") or problem.get("title") or "")
    if len(errors) > 1:
        lines = [f"  {error.get('pointer') or '/'}: {error.get('detail')}" for error in errors]
        return "\n".join([str(problem.get("title") or "The request is not valid") + ":", *lines])
    if errors and str(errors[0].get("detail")) not in detail:
        return f"{detail}\n  {errors[0].get('pointer') or '/'}: {errors[0].get('detail')}"
    return detail


class DownloadCorrupt(PennyweightError):
    """An artifact's bytes do not have the digest that the service announced."""
