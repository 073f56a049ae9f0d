"""Polls that learn that nothing has changed, answered before any routing: they are most of the traffic.

A poll with `If-None-Match` needs to know whose key it has and where the job stands, and `Marks` has both for all who ask at
this moment. What is not exactly a 304 goes on to the route as if this layer were not there, and is refused there, too.
"""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from api.content import matches
from api.dependencies import Services, admit
from api.polling import job_etag, job_headers
from api.problems import Problem, problem_response
from api.security import keys_required
from store.tables import LOCAL_TENANT

_JOB = re.compile(r"(?:/v1)?/jobs/(job_[0-9A-HJKMNP-TV-Z]{26})")
_ASKED = (b"authorization", b"if-none-match", b"prefer")


class UnchangedPolls:
    """ASGI middleware, the innermost. `route` is the one that polls would meet: they are counted and logged as its."""

    def __init__(self, app: ASGIApp, services: Services, route: BaseRoute) -> None:
        self.app = app
        self._services = services
        self._route = route
        self._keyless = not keys_required(services.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._unchanged(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        if answer is None:
            await self.app(scope, receive, send)
        else:
            await answer(scope, receive, send)

    async def _unchanged(self, scope: Scope) -> Response | None:
        found = _JOB.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        if found is None:
            return None
        asked = {name: value for name, value in scope["headers"] if name in _ASKED}
        if b"if-none-match" not in asked or b"prefer" in asked:
            return None
        scheme, _, secret = asked.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" and not (self._keyless and not scheme):
            return None
        seen = await self._services.marks.ask(secret.strip() if scheme else None, found[1])
        tenant_id = seen.key.tenant_id if seen.key else None if scheme else LOCAL_TENANT
        known = asked[b"if-none-match"].decode("latin-1")
        if seen.job is None or seen.job.tenant_id != tenant_id or not matches(known, job_etag(seen.job)):
            return None
        scope["route"], scope["path_params"] = self._route, {"job_id": found[1]}
        if seen.key is not None:
            try:
                admit(self._services, seen.key, scope["method"], scope["state"])
            except Problem as problem:
                return problem_response(Request(scope), problem)
        return Response(status_code=304, headers=job_headers(seen.job, seen.job.now))
