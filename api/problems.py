"""Every refusal is one `application/problem+json` document (RFC 9457), whoever raised it.

`type` is a URN made of the stable `code`; `errors` points into the request with JSON pointers (in a multipart request the
first segment is the name of the part). `PROBLEMS` is the complete list of codes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from store.errors import (
    Conflict,
    DatasetUnlabelled,
    IdempotencyKeyReused,
    NotFound,
    ObjectMissing,
    PartsGone,
    PartsIncomplete,
    QuotaExceeded,
    QuotaUse,
    RequestInFlight,
    StorageUnavailable,
    TooManyJobs,
    UploadRejected,
)
from store.quotas import LimitName

logger = logging.getLogger("api")

MEDIA_TYPE = "application/problem+json"
RETRY_S = 5

PROBLEMS: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be understood"),
    "malformed_json": (400, "The body is not JSON"),
    "malformed_multipart": (400, "The body is not a multipart form"),
    "unauthorized": (401, "An API key is needed"),
    "insufficient_scope": (403, "This API key may not do that"),
    "origin_not_allowed": (403, "This origin may not call the API"),
    "not_found": (404, "There is nothing here"),
    "method_not_allowed": (405, "This route does not take this method"),
    "idempotency_in_flight": (409, "A request with this idempotency key is being worked on"),
    "in_use": (409, "The upload is in use"),
    "job_not_cancellable": (409, "The job has already ended"),
    "job_not_terminal": (409, "The job has not ended yet"),
    "endpoint_disabled": (409, "The webhook endpoint is disabled"),
    "too_many_endpoints": (409, "There are too many webhook endpoints"),
    "nothing_to_bundle": (409, "The job has no files for this bundle"),
    "upload_gone": (409, "The upload takes no more parts"),
    "upload_incomplete": (409, "Parts of the upload are missing"),
    "too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "This content type is not supported"),
    "unsupported_format": (415, "This file format is not supported"),
    "too_many_requests": (429, "Too many requests"),
    "too_many_jobs": (429, "Too many jobs at a time"),
    "range_not_satisfiable": (416, "The range lies outside the file"),
    "host_not_allowed": (421, "This host name is not served here"),
    "validation_failed": (422, "The request is not valid"),
    "empty_file": (422, "The file is empty"),
    "idempotency_key_reused": (422, "The idempotency key stands for another request"),
    "digest_mismatch": (422, "These are not the bytes that were announced"),
    "wrong_part_size": (422, "The part has another size"),
    "unknown_architecture": (422, "There is no such architecture"),
    "upload_rejected": (422, "The upload was rejected"),
    "internal": (500, "Something went wrong here"),
    "unavailable": (503, "A part of the service does not answer"),
    "quota_exceeded": (507, "The quota is used up"),
}


class FieldError(BaseModel):
    """One thing that is wrong; `pointer` is a JSON pointer into the body, or `/name` of a query parameter or part."""

    pointer: str
    code: str
    detail: str


class QuotaDocument(BaseModel):
    """With the codes `quota_exceeded` and `too_many_jobs`: which limit of the tenant's, how much of it is used, and how
    much more the request would take (of GPU seconds nobody knows; it says 1)."""

    name: LimitName
    limit: int
    used: int
    requested: int


class ProblemDocument(BaseModel):
    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldError]
    quota: QuotaDocument | None = None


class Problem(Exception):
    """Raised anywhere under a request, answered as a problem document. `code` is a key of PROBLEMS."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        quota: QuotaUse | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = PROBLEMS[code]
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.quota = quota

    @classmethod
    def at(cls, pointer: str, error_code: str, detail: str, *, code: str = "validation_failed") -> Problem:
        """A problem with one field."""
        return cls(code, detail, errors=[FieldError(pointer=pointer, code=error_code, detail=detail)])


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    document = ProblemDocument(
        type=f"urn:pennyweight:problem:{problem.code}",
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        instance=request.url.path,
        code=problem.code,
        request_id=request.state.request_id,
        errors=list(problem.errors),
        quota=None if problem.quota is None else QuotaDocument.model_validate(asdict(problem.quota)),
    )
    body = document.model_dump(mode="json", exclude_none=True)
    return JSONResponse(body, status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


def field_errors(errors: Sequence[ErrorDetails | Mapping[str, Any]], at: str = "") -> list[FieldError]:
    """Pydantic's errors with JSON pointers under `at`."""
    return [
        FieldError(
            pointer=at + "".join(f"/{escape(part)}" for part in error["loc"] if part != "[key]"),
            code=_CODES.get(error["type"], error["type"]),
            detail=_detail(error),
        )
        for error in errors
    ]


def escape(segment: object) -> str:
    """One segment of a JSON pointer (RFC 6901)."""
    return str(segment).replace("~", "~0").replace("/", "~1")


def invalid(errors: Sequence[FieldError]) -> Problem:
    """A 422 for these errors, whose `detail` reads well alone."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
    return Problem("validation_failed", f"{first.pointer or '/'}: {first.detail}{more}", errors=errors)


def unavailable(part: str) -> Problem:
    """A 503 for a part of the service that may answer in a moment."""
    detail = f"The {part} does not work at the moment; the server's log says why. Try again."
    return Problem("unavailable", detail, headers={"Retry-After": str(RETRY_S)})


def install(app: FastAPI) -> None:
    """Answer every exception that a route can raise; what is left over is the request context's 500."""

    @app.exception_handler(Problem)
    def _problem(request: Request, problem: Problem) -> JSONResponse:
        return problem_response(request, problem)

    @app.exception_handler(NotFound)
    def _not_found(request: Request, error: NotFound) -> JSONResponse:
        if error.param is None:
            return problem_response(request, Problem("not_found", str(error)))
        return problem_response(
            request, Problem.at(_at(request, error.param), "not_found", str(error), code="not_found")
        )

    @app.exception_handler(ObjectMissing)
    def _object_missing(request: Request, error: ObjectMissing) -> JSONResponse:
        return problem_response(request, Problem("not_found", "The file has been deleted."))

    @app.exception_handler(PartsGone)
    def _parts_gone(request: Request, error: PartsGone) -> JSONResponse:
        return problem_response(request, Problem("upload_gone", str(error)))

    @app.exception_handler(PartsIncomplete)
    def _parts_incomplete(request: Request, error: PartsIncomplete) -> JSONResponse:
        return problem_response(request, Problem("upload_incomplete", str(error)))

    @app.exception_handler(StorageUnavailable)
    def _no_storage(request: Request, error: StorageUnavailable) -> JSONResponse:
        logger.error("%s [%s]", error, request.state.request_id)
        return problem_response(request, unavailable("object store"))

    @app.exception_handler(Conflict)
    def _conflict(request: Request, error: Conflict) -> JSONResponse:
        return problem_response(request, Problem(error.code, error.message))

    @app.exception_handler(IdempotencyKeyReused)
    def _key_reused(request: Request, error: IdempotencyKeyReused) -> JSONResponse:
        return problem_response(request, Problem("idempotency_key_reused", str(error)))

    @app.exception_handler(RequestInFlight)
    def _in_flight(request: Request, error: RequestInFlight) -> JSONResponse:
        return problem_response(request, Problem("idempotency_in_flight", str(error), headers={"Retry-After": "1"}))

    @app.exception_handler(QuotaExceeded)
    def _over_quota(request: Request, error: QuotaExceeded) -> JSONResponse:
        return problem_response(request, Problem("quota_exceeded", str(error), quota=error.use))

    @app.exception_handler(TooManyJobs)
    def _too_many_jobs(request: Request, error: TooManyJobs) -> JSONResponse:
        return problem_response(
            request, Problem("too_many_jobs", str(error), headers={"Retry-After": "30"}, quota=error.use)
        )

    @app.exception_handler(UploadRejected)
    def _rejected(request: Request, error: UploadRejected) -> JSONResponse:
        pointer = _at(request, error.param)
        return problem_response(request, Problem.at(pointer, error.error.code, str(error), code="upload_rejected"))

    @app.exception_handler(DatasetUnlabelled)
    def _unlabelled(request: Request, error: DatasetUnlabelled) -> JSONResponse:
        errors = [
            FieldError(pointer=_at(request, f"/{field}"), code="dataset_unlabelled", detail=str(error))
            for field in error.fields
        ]
        return problem_response(request, Problem("validation_failed", str(error), errors=errors))

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # The first part of a location says where it was found: query, path or header; pointers start after it.
        found = [{**one, "loc": one["loc"][1:]} for one in error.errors()]
        return problem_response(request, invalid(field_errors(found)))

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        match error.status_code:
            case 404:
                problem = Problem("not_found", f"There is no route {request.url.path}; GET /docs lists them.")
            case 405:
                allowed = request.app.state.allowed_methods(request)
                problem = Problem(
                    "method_not_allowed",
                    f"{request.url.path} takes {' and '.join(allowed)}, not {request.method}.",
                    headers={"Allow": ", ".join(allowed)},
                )
            case status if status < 500:
                problem = Problem("bad_request", str(error.detail) or HTTPStatus(status).phrase)
            case _:
                raise error
        return problem_response(request, problem)


def _at(request: Request, field: str) -> str:
    """The pointer of a job's field: in a form, the job is the part `spec`."""
    is_form = request.headers.get("content-type", "").lower().startswith("multipart/")
    return f"/spec{field}" if is_form else field


_EVERYWHERE = (400, 421, 422, 429, 500, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these statuses; those that every route has need not be named."""
    titles: dict[int, list[str]] = {}
    for code, (status, title) in PROBLEMS.items():
        titles.setdefault(status, []).append(f"`{code}`: {title}")
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {
        status: {"description": "; ".join(titles[status]), "content": content} for status in {*statuses, *_EVERYWHERE}
    }


_CODES = {
    "value_error": "invalid",
    "extra_forbidden": "unknown_field",
    "missing": "required",
    "string_pattern_mismatch": "pattern",
    "literal_error": "not_one_of",
    "enum": "not_one_of",
}


def _detail(error: ErrorDetails | Mapping[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            return f"Unknown field {str(error['loc'][-1])[:100]!r}."
        case "missing":
            return "This field is required."
        case "value_error":
            return str(error["ctx"]["error"])
    return str(error["msg"])
