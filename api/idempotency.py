"""`Idempotency-Key`: a request that creates may be sent again and happens once (store.idempotency has the promise).

    async def create(…, once: Once):
        await once.begin(once.fingerprint(body))       # answers a repeated request at once
        with services.database.transaction() as session:
            once.settle(session)                       # … or here, where it began together with the first
            row = Repository(session, tenant_id).create(…)
            once.keep(session, 201, resource, headers)

Without the header every step does nothing. A request that fails gives its key back: what was refused can be corrected
and sent again under the same key, because nothing was created under it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.dependencies import Services, ServicesOf, TenantId
from store.idempotency import IdempotencyRepository, KeptAnswer

REPLAYED = {"Idempotent-Replayed": "true"}
_UNREAD = hashlib.sha256(b"").hexdigest()

IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[ -~]+$",
        description="Any text of your own, new for each request. The request may then be sent again, with the same body, "
        "for 24 hours: it happens once, and every time the first answer comes back.",
    ),
]


class Replay(Exception):
    """The request has been answered before; raised through the creating transaction, which it rolls back."""

    def __init__(self, answer: KeptAnswer) -> None:
        super().__init__()
        self.answer = answer


class Attempt:
    """One request under its key, if it has one."""

    def __init__(self, services: Services, tenant_id: str, key: str | None, operation: str) -> None:
        self.key = key
        self._services = services
        self._tenant_id = tenant_id
        self._operation = operation
        self._holder = secrets.token_hex(16)
        self._fingerprint = _UNREAD

    @staticmethod
    def fingerprint(*parts: Any) -> str:
        """A digest of JSON values: equal bodies have equal ones, however they are spelt."""
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    async def begin(self, fingerprint: str | None = _UNREAD) -> None:
        """Reserve the key. `fingerprint` None: the body has yet to arrive, and `settle` is told. Raises Replay,
        IdempotencyKeyReused, RequestInFlight."""
        if self.key is None:
            return
        key = self.key
        self._fingerprint = fingerprint or _UNREAD

        def reserve() -> KeptAnswer | None:
            with self._services.database.transaction() as session:
                return self._repository(session).reserve(key, self._operation, fingerprint, self._holder)

        answer = await run_in_threadpool(reserve)
        if answer is not None:
            raise Replay(answer)

    def settle(self, session: Session, fingerprint: str | None = None) -> None:
        """First in the creating transaction. Raises Replay, IdempotencyKeyReused."""
        if self.key is None:
            return
        self._fingerprint = fingerprint or self._fingerprint
        answer = self._repository(session).settle(self.key, self._operation, self._fingerprint)
        if answer is not None:
            raise Replay(answer)

    def keep(self, session: Session, status: int, resource: BaseModel, headers: Mapping[str, str]) -> None:
        """Last in the creating transaction: what the client is told."""
        if self.key is None:
            return
        answer = KeptAnswer(status, headers, resource.model_dump_json(), str(getattr(resource, "id", "")))
        self._repository(session).keep(self.key, self._operation, self._fingerprint, answer)

    async def release(self) -> None:
        if self.key is None:
            return
        key = self.key

        def release() -> None:
            with self._services.database.transaction() as session:
                self._repository(session).release(key, self._holder)

        with anyio.CancelScope(shield=True):
            await run_in_threadpool(release)

    def _repository(self, session: Session) -> IdempotencyRepository:
        return IdempotencyRepository(session, self._tenant_id)


async def _attempt(
    request: Request, services: ServicesOf, tenant_id: TenantId, key: IdempotencyKeyHeader = None
) -> AsyncIterator[Attempt]:
    path = request.scope["path"].removeprefix(request.scope.get("root_path", "")).removeprefix("/v1")
    attempt = Attempt(services, tenant_id, key, f"{request.method} {path}")
    try:
        yield attempt
    except BaseException:
        await attempt.release()
        raise


Once = Annotated[Attempt, Depends(_attempt)]


def replayed(answer: KeptAnswer) -> Response:
    return Response(
        answer.body,
        status_code=answer.status,
        headers={**answer.headers, **REPLAYED},
        media_type="application/json",
    )


def install(app: FastAPI) -> None:
    @app.exception_handler(Replay)
    def _replay(request: Request, replay: Replay) -> Response:
        return replayed(replay.answer)
