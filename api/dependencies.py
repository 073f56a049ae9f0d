"""What routes are given: the services of this process, the caller's tenant, and the parameters of a list."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.problems import FieldError, invalid
from api.security import keys_required, tenant_of
from store.catalogue import CatalogueRepository
from store.contract import Catalogue
from store.database import Database
from store.objects import ObjectStore
from store.pages import MAX_LIMIT
from store.settings import Settings
from store.tables import LOCAL_TENANT

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

    def ring(self) -> None:
        """Tell a worker, after the commit. Workers also look by themselves, so a failure here loses nothing."""
        if self.wake is not None:
            try:
                self.wake()
            except Exception:
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


def _services(request: Request) -> Services:
    return request.app.state.services


ServicesOf = Annotated[Services, Depends(_services)]

_bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="`pennyweightd keys create NAME` makes a key.")


async def _tenant(request: Request, services: ServicesOf, _documented: Annotated[object, Depends(_bearer)]) -> str:
    authorization = request.headers.get("authorization")
    if authorization is None and not keys_required(services.settings):
        return LOCAL_TENANT

    def check() -> str:
        with services.database.read() as session:
            return tenant_of(session, authorization)

    return await run_in_threadpool(check)


TenantId = Annotated[str, Depends(_tenant)]


PageLimit = Annotated[
    int, Query(ge=1, description=f"How many entries at most; more than {MAX_LIMIT} is taken as {MAX_LIMIT}.")
]
PageAfter = Annotated[str | None, Query(max_length=255, description="The cursor `next` of the page before.")]
PageOrder = Annotated[Literal["asc", "desc"], Query(description="By age: newest first is `desc`.")]


def known_query(*names: str, prefixes: tuple[str, ...] = ()) -> Callable[[Request], None]:
    """A dependency that refuses other query parameters: a misspelt filter must not look like an unfiltered list."""

    def check(request: Request) -> None:
        unknown = [
            FieldError(
                pointer=f"/{name}",
                code="unknown_parameter",
                detail=f"Unknown query parameter. Known: {', '.join(names)}.",
            )
            for name in request.query_params
            if name not in names and not name.startswith(prefixes)
        ]
        if unknown:
            raise invalid(unknown)

    return check
