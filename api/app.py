"""The FastAPI application: `create_app(settings)` puts the routes, the checks and the store together.

    request → context (id, log, HEAD, 500) → loopback guard → CORS → polls without news → routes → store

The application holds no state of its own: any number of these processes can serve one database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import compile_path

from api import (
    bundles,
    catalogue,
    datasets,
    direct_uploads,
    documentation,
    idempotency,
    jobs,
    metrics,
    models,
    operations,
    outcomes,
    plans,
    problems,
    webhooks,
)
from api.context import RequestContext
from api.dependencies import Services
from api.security import LoopbackGuard, keys_required
from api.unchanged import UnchangedPolls
from store.database import Database
from store.objects import ObjectStore, object_store
from store.settings import Settings

VERSIONED = (
    models.router,
    datasets.router,
    direct_uploads.router,
    plans.router,
    jobs.router,
    outcomes.router,
    bundles.router,
    catalogue.router,
    webhooks.router,
    operations.versioned,
)
UNVERSIONED = (operations.router, metrics.router, documentation.pages)
PREFIX = "/v1"

_EXPOSED_HEADERS = (
    "ETag",
    "Location",
    "Retry-After",
    "X-Request-Id",
    "Content-Disposition",
    "Content-Range",
    "Accept-Ranges",
    "Repr-Digest",
    "Idempotent-Replayed",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "WWW-Authenticate",
)


def create_app(
    settings: Settings,
    database: Database | None = None,
    objects: ObjectStore | None = None,
    wake: Callable[[], None] | None = None,
) -> FastAPI:
    """The application over this database and object store, by default those that `settings` name.

    `wake` is called after something became claimable, for a worker in this process. Starting up raises SchemaOutdated
    unless the database is at this program's revision.
    """
    owns_database = database is None
    services = Services(
        settings=settings,
        database=database or Database(settings.resolved_database_url),
        objects=objects or object_store(settings.resolved_storage_url, settings.storage_public_url),
        wake=wake,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        services.database.check_schema()
        yield
        if owns_database:
            services.database.dispose()

    app = FastAPI(
        title="Pennyweight",
        version=operations.VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    app.state.probes = operations.Probes(services)
    app.state.metrics = metrics.RequestMetrics(operations.VERSION, services.database)
    app.state.allowed_methods = _allowed_methods()
    for router in VERSIONED:
        app.include_router(router, prefix=PREFIX)
        app.include_router(router, include_in_schema=False)
    for router in UNVERSIONED:
        app.include_router(router)
    problems.install(app)
    idempotency.install(app)
    app.add_middleware(UnchangedPolls, services=services, route=_named(jobs.router, "get_job"))
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "If-None-Match",
                "If-Range",
                "Range",
                "Prefer",
                "Last-Event-ID",
                "X-Request-Id",
                "Idempotency-Key",
            ],
            expose_headers=_EXPOSED_HEADERS,
        )
    if not keys_required(settings):
        app.add_middleware(LoopbackGuard, settings=settings)
    aliases = {route.path: PREFIX + route.path for router in VERSIONED for route in _routes(router)}
    app.add_middleware(RequestContext, metrics=app.state.metrics, aliases=aliases, log_polls=settings.log_polls)
    _describe(app, settings)
    return app


def _describe(app: FastAPI, settings: Settings) -> None:
    """Make `app.openapi()` tell of the bodies and security that FastAPI cannot see, once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = documentation.openapi_document(app, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] - FastAPI's own way to change its document


def _allowed_methods() -> Callable[[Request], list[str]]:
    """What may be done with a request's path: a route of its own stands behind every method."""
    patterns = [
        (compile_path(prefix + route.path)[0], route.methods)
        for routers, prefixes in ((VERSIONED, (PREFIX, "")), (UNVERSIONED, ("",)))
        for router in routers
        for prefix in prefixes
        for route in _routes(router)
    ]

    def allowed(request: Request) -> list[str]:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        found = {method for pattern, methods in patterns if pattern.match(path) for method in methods}
        return sorted(found | ({"HEAD"} if "GET" in found else set())) or ["GET", "HEAD"]

    return allowed


def _routes(router: APIRouter) -> list[APIRoute]:
    return [route for route in router.routes if isinstance(route, APIRoute)]


def _named(router: APIRouter, name: str) -> APIRoute:
    return next(route for route in _routes(router) if route.name == name)
