"""The outermost layer: every request gets an id, a log line (polls only where they go wrong), an answer to HEAD, and a problem document if it breaks."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import UNMATCHED, RequestMetrics
from api.problems import Problem, problem_response, unavailable
from store import logs, tracing
from store.database import is_down

logger = logging.getLogger("api")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


class RequestContext:
    """ASGI middleware. Puts `request_id` into the request's state and `X-Request-Id` on the response."""

    def __init__(
        self, app: ASGIApp, metrics: RequestMetrics, aliases: Mapping[str, str], log_polls: bool = False
    ) -> None:
        """aliases: the one template under which every route is counted, for those that have two. log_polls: whether
        reads that go well are logged too."""
        self.app = app
        self._log_polls = log_polls
        self._metrics = metrics
        self._aliases = aliases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        head_only = scope["method"] == "HEAD"
        scope = {**scope, "method": "GET" if head_only else scope["method"]}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "head_only": head_only}
        started, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.update(scope["state"].get("extra_headers", {}))
            elif head_only:
                message = {**message, "body": b""}
            await send(message)

        request = Request(scope, receive)
        headers = Headers(scope=scope)
        with (
            logs.bound(request_id=request_id),
            tracing.span(_known(scope["method"]), server=True, headers=headers, request_id=request_id) as span,
        ):
            try:
                if "\0" in scope["path"]:  # no route has one, and some databases refuse it
                    raise Problem("not_found", "A path cannot contain a NUL character.")
                if b"%00" in scope["query_string"]:
                    raise Problem("bad_request", "A query parameter cannot contain a NUL character.")
                await self.app(scope, receive, answer)
            except Problem as problem:
                await problem_response(request, problem)(scope, receive, answer)
            except ClientDisconnect:
                status = 499
            except Exception as error:  # whatever no route foresaw: the client is told, and the log says what it was
                if down := is_down(error):
                    reason = str(error).splitlines()[0]
                    logger.error("The database does not answer (%s) [%s]", reason, request_id)
                else:
                    logger.exception("%s %s failed [%s]", scope["method"], _quoted(scope["path"]), request_id)
                if status:
                    raise  # the answer has begun: only cutting the connection tells the client
                if down:
                    problem = unavailable("database")
                else:
                    problem = Problem("internal", f"This is our fault. The server's log has more under {request_id}.")
                await problem_response(request, problem)(scope, receive, answer)
            finally:
                elapsed_s = time.monotonic() - started
                method = "HEAD" if head_only else scope["method"]
                # Polls and health checks that go well are most of the traffic and none of the news.
                route = self._template(scope)
                self._metrics.observe(_known(method), route, status, elapsed_s)
                span.rename(f"{_known(method)} {route}")
                span.set(http__request__method=_known(method), http__route=route, http__response__status_code=status)
                span.set(**logs.bound_fields())
                if status >= 500:
                    span.fail(f"status {status}")
                news = self._log_polls or scope["method"] != "GET" or not 0 < status < 400
                level = logging.INFO if news else logging.DEBUG
                if logger.isEnabledFor(level):
                    self._log(level, scope, method, route, status, elapsed_s)

    def _log(self, level: int, scope: Scope, method: str, route: str, status: int, elapsed_s: float) -> None:
        elapsed_ms = round(elapsed_s * 1000, 1)
        told = {"method": method, "route": route, "status": status, "duration_ms": elapsed_ms}
        told |= {name: value for name, value in scope.get("path_params", {}).items() if name.endswith("_id")}
        words = (method, _quoted(scope["path"]), status, elapsed_ms, scope["state"]["request_id"])
        logger.log(level, "%s %s %d %.1f ms [%s]", *words, extra={"fields": told})

    def _template(self, scope: Scope) -> str:
        """The route that the request has met, as it was written: `/v1/jobs/{job_id}`."""
        path = getattr(scope.get("route"), "path", None)
        return UNMATCHED if path is None else self._aliases.get(path, path)


def _known(method: str) -> str:
    """Whoever calls may invent methods, and each would be a time series for ever."""
    return method if method in METHODS else "other"


def _quoted(path: str) -> str:
    """The path with everything percent-encoded that could forge a log line or command a terminal."""
    return quote(path, safe="/:@!$&'()*+,;=~")
