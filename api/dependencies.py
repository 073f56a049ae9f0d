"""What routes are given: the services of this process, the caller's tenant, and the parameters of a list."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer

from api.marks import Marks
from api.problems import FieldError, Problem, invalid
from api.rates import RateLimiter
from api.security import SAFE_METHODS, keys_required, require_key, require_scope, secret_of
from api.watching import Watcher
from store import logs
from store.catalogue import CatalogueRepository
from store.contract import Catalogue
from store.database import Database
from store.identifiers import Prefix
from store.keys import KeyHolder
from store.objects import ObjectStore
from store.pages import DEFAULT_LIMIT, MAX_LIMIT, Order
from store.quotas import Quotas
from store.settings import Settings
from store.tables import LOCAL_TENANT, Scope

logger = logging.getLogger("api")


class _CatalogueInUse:
    """The catalogue as it was last read: it has a line per architecture, and changes when a worker starts."""

    def __init__(self) -> None:
        self._read: tuple[Hashable, Catalogue | None] = ((), None)

    def get(self, repository: CatalogueRepository) -> Catalogue | None:
        stamp = repository.stamp()
        if stamp != self._read[0]:
            self._read = (stamp, repository.current())
        return self._read[1]


@dataclass(frozen=True)
class Services:
    """Everything that a route needs from the process. `wake` tells a worker in this process that there is work."""

    settings: Settings
    database: Database
    objects: ObjectStore
    wake: Callable[[], None] | None
    _catalogue: _CatalogueInUse = field(default_factory=_CatalogueInUse)

    @cached_property
    def rates(self) -> RateLimiter | None:
        limit = self.settings.rate_limit_per_minute
        return RateLimiter(limit) if limit else None

    @cached_property
    def quotas(self) -> Quotas:
        return Quotas.of_installation(self.settings)

    @cached_property
    def marks(self) -> Marks:
        return Marks(self.database)

    @cached_property
    def watcher(self) -> Watcher:
        return Watcher(self.database)

    def ring(self) -> None:
        """Tell a worker, after the commit. Workers also look by themselves, so a failure here loses nothing."""
        if self.wake is not None:
            try:
                self.wake()
            except Exception:  # of the waker's, whatever it is: the request has succeeded already
                logger.exception("The worker could not be told about new work; it will find it by polling.")

    def catalogue(self) -> Catalogue | None:
        with self.database.read() as session:
            return self._catalogue.get(CatalogueRepository(session))

    def remove_objects(self, prefixes: list[str]) -> None:
        """Remove what a committed deletion left in the object store. A failure leaves garbage, never a broken row."""
        for prefix in prefixes:
            try:
                self.objects.delete_prefix(prefix)
            except OSError:
                logger.exception("Could not remove %s; it is no longer referenced.", prefix)


async def _services(request: Request) -> Services:  # a plain function would take a thread for each request
    return request.app.state.services


ServicesOf = Annotated[Services, Depends(_services)]

_bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="`pennyweightd keys create NAME` makes a key.")


async def _tenant(request: Request, services: ServicesOf, _documented: Annotated[object, Depends(_bearer)]) -> str:
    authorization = request.headers.get("authorization")
    if authorization is None and not keys_required(services.settings):
        return LOCAL_TENANT
    secret = secret_of(authorization)
    found = await services.marks.ask(secret=secret)
    return admit(services, require_key(found.key), request.method, request.scope["state"])


def admit(services: Services, key: KeyHolder, method: str, state: dict[str, Any]) -> str:
    """Count a call of this key and return its tenant; `state` is the request's. Raises the 429 and the 403."""
    logs.add(tenant=key.tenant_id)
    if services.rates is not None:
        allowance = services.rates.take(key.key_id)
        state["extra_headers"] = allowance.headers
        if allowance.retry_after_s is not None:
            detail = f"This key may call {allowance.limit} times a minute; wait {allowance.retry_after_s} s."
            raise Problem("too_many_requests", detail, headers={"Retry-After": str(allowance.retry_after_s)})
    require_scope(key, Scope.read if method in SAFE_METHODS else Scope.write)
    state["scope"] = key.scope
    return key.tenant_id


TenantId = Annotated[str, Depends(_tenant)]


def admin_only(request: Request, _tenant: TenantId) -> None:
    """A dependency of routes that give secrets away, or send them somewhere."""
    scope = getattr(request.state, "scope", Scope.admin)
    if not scope.includes(Scope.admin):
        raise Problem("insufficient_scope", f"This takes a key of the scope admin; this one has {scope.value}.")


PageLimit = Annotated[
    int, Query(ge=1, description=f"How many entries at most; more than {MAX_LIMIT} is taken as {MAX_LIMIT}.")
]
_CURSOR = "The cursor `next` of the page before."
PageAfter = Annotated[str | None, Query(max_length=255, description=_CURSOR)]
PageOrder = Annotated[Order, Query(description="By age: newest first is `desc`.")]


def known_query(
    *names: str, prefixes: tuple[str, ...] = (), repeatable: tuple[str, ...] = ()
) -> Callable[[Request], None]:
    """A dependency that refuses other query parameters, and the same one twice unless it is `repeatable`: a filter that
    is misspelt, or of which only the last value would count, must not look like one that was applied."""

    known = ", ".join((*names, *(f"{prefix}…" for prefix in prefixes)))

    def check(request: Request) -> None:
        given = Counter(name for name, _ in request.query_params.multi_items())
        wrong = [
            FieldError(
                pointer=f"/{name}",
                code="unknown_parameter",
                detail=f"Unknown query parameter. Known: {known}.",
            )
            for name in given
            if name not in names and not name.startswith(prefixes)
        ]
        wrong += [
            FieldError(pointer=f"/{name}", code="duplicate", detail=f"Given {count} times; it takes one value.")
            for name, count in given.items()
            if count > 1 and name not in repeatable
        ]
        if wrong:
            raise invalid(wrong)

    return check


class PageAsked(NamedTuple):
    """The page of a list that a caller asks for: the last arguments of a repository's `list`."""

    limit: int
    after: str | None
    order: Order


def paged(prefix: Prefix, *filters: str, prefixes: tuple[str, ...] = (), repeatable: tuple[str, ...] = ()) -> Any:
    """The type of a parameter of a route that lists what has ids of this kind. Beside `filters` it is all that the
    query may hold. An entry that is gone still has its place, so that its id may be the cursor."""
    check = known_query(*filters, *PageAsked._fields, prefixes=prefixes, repeatable=repeatable)

    async def asked(
        request: Request,
        limit: PageLimit = DEFAULT_LIMIT,
        after: str | None = Query(None, pattern=f"^{prefix}_[0-9A-HJKMNP-TV-Z]{{26}}$", description=_CURSOR),
        order: PageOrder = "desc",
    ) -> PageAsked:
        check(request)
        return PageAsked(limit, after, order)

    return Annotated[PageAsked, Depends(asked)]
