"""What can be asked for: the methods and architectures that the workers published, with their JSON schemas."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api import resources
from api.dependencies import PageAfter, PageLimit, ServicesOf, TenantId, known_query
from api.problems import problems
from store.pages import DEFAULT_LIMIT

router = APIRouter(tags=["catalogue"])

Search = Annotated[
    str | None,
    Query(max_length=200, description="Only those that have every one of these words in their name or title."),
]


@router.get(
    "/methods",
    summary="List compression methods",
    description="Empty until a worker has started for the first time.",
    responses=problems(401),
    dependencies=[Depends(known_query("limit", "after"))],
)
def list_methods(
    services: ServicesOf, _tenant_id: TenantId, limit: PageLimit = DEFAULT_LIMIT, after: PageAfter = None
) -> resources.MethodList:
    catalogue = services.catalogue()
    methods = [] if catalogue is None else catalogue.methods
    page = resources.slice_of(methods, lambda method: method.type, limit=limit, after=after)
    return resources.MethodList.of(page)


@router.get(
    "/architectures",
    summary="List named architectures",
    description="Empty until a worker has started for the first time.",
    responses=problems(401),
    dependencies=[Depends(known_query("search", "limit", "after"))],
)
def list_architectures(
    services: ServicesOf,
    _tenant_id: TenantId,
    search: Search = None,
    limit: PageLimit = DEFAULT_LIMIT,
    after: PageAfter = None,
) -> resources.ArchitectureList:
    catalogue = services.catalogue()
    words = (search or "").casefold().split()
    found = [
        architecture
        for architecture in ([] if catalogue is None else catalogue.architectures)
        if all(word in f"{architecture.name} {architecture.title}".casefold() for word in words)
    ]
    page = resources.slice_of(found, lambda architecture: architecture.name, limit=limit, after=after)
    return resources.ArchitectureList.of(page)
