"""Webhook endpoints: who is told what happens to jobs, what was sent to them, and sending it again."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter
from starlette.concurrency import run_in_threadpool

from api import resources
from api.dependencies import ServicesOf, TenantId, admin_only, paged
from api.idempotency import Once
from api.problems import Problem, problems
from api.requests import media_type, read_json, unsupported_media_type
from api.validation import validate
from store import tables
from store.contract import FINAL_EVENTS, WebhookEvents, WebhookSecret, WebhookUrl
from store.contract import Request as RequestBody
from store.settings import Settings
from store.tables import DeliveryStatus, EndpointStatus
from store.webhook_urls import RefusedUrl
from store.webhooks import WebhookRepository

router = APIRouter(tags=["webhooks"])

PageOfEndpoints = paged("whk", "job")
PageOfDeliveries = paged("evt")
Description = Annotated[str, StringConstraints(max_length=200)]


class EndpointRequest(RequestBody):
    """Where to send which events. Without a `secret` one is made."""

    url: WebhookUrl
    events: WebhookEvents = Field(default_factory=lambda: list(FINAL_EVENTS))
    description: Description | None = None
    secret: WebhookSecret | None = None


class EndpointChange(RequestBody):
    """What is given is changed."""

    url: WebhookUrl | None = None
    events: WebhookEvents | None = None
    description: Description | None = None
    status: Literal["active", "disabled"] | None = None


class Endpoint(BaseModel):
    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    events: list[str]
    description: str | None
    job: str | None = Field(description="The one job that it hears of, if it came with that job.")
    status: EndpointStatus
    disabled_reason: str | None
    failing_since: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: tables.WebhookEndpoint) -> Self:
        return cls(
            id=row.id,
            url=row.url,
            events=row.events,
            description=row.description,
            job=row.job_id,
            status=row.status,
            disabled_reason=row.disabled_reason,
            failing_since=row.failing_since,
            created_at=row.created_at,
        )


class EndpointSecret(BaseModel):
    secret: str


class NewEndpoint(Endpoint, EndpointSecret):
    """With the secret that every message to it is signed with."""


class EndpointList(resources.Listing):
    data: list[Endpoint]


class Delivery(BaseModel):
    """One message: `id` is its `webhook-id`, the same in every attempt; `payload` is its body."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint: str
    job: str
    type: str
    status: DeliveryStatus
    attempts: int
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    last_status: int | None = Field(description="The HTTP status of the last attempt.")
    last_error: str | None
    delivered_at: datetime | None
    created_at: datetime
    payload: dict[str, Any]

    @classmethod
    def of(cls, row: tables.WebhookDelivery) -> Self:
        return cls(
            id=row.id,
            endpoint=row.endpoint_id,
            job=row.job_id,
            type=row.type,
            status=row.status,
            attempts=row.attempts,
            next_attempt_at=row.next_attempt_at if row.status is DeliveryStatus.pending else None,
            last_attempt_at=row.last_attempt_at,
            last_status=row.last_status,
            last_error=row.last_error,
            delivered_at=row.delivered_at,
            created_at=row.created_at,
            payload=json.loads(row.body),
        )


class DeliveryList(resources.Listing):
    data: list[Delivery]


_endpoint_request: TypeAdapter[EndpointRequest] = TypeAdapter(EndpointRequest)
_endpoint_change: TypeAdapter[EndpointChange] = TypeAdapter(EndpointChange)


def check_url(url: str | None, settings: Settings, at: str) -> None:
    """Raises the 422 for a URL that no webhook will ever be sent to."""
    if url is None:
        return
    try:
        settings.webhook_policy.target(url)
    except RefusedUrl as error:
        raise Problem.at(at, "url_refused", f"Webhooks cannot go to this URL: {error}.") from error


def _body(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


async def _json(request: Request) -> Any:
    if media_type(request) != "application/json":
        raise unsupported_media_type(request, "application/json")
    return await read_json(request)


@router.post(
    "/webhook_endpoints",
    status_code=201,
    summary="Be told what happens to jobs",
    description=(
        "Messages follow Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature`, which is made with "
        "the `secret` of this answer. Only https URLs of public addresses are called."
    ),
    dependencies=[Depends(admin_only)],
    responses=problems(401, 403, 409, 413, 415),
    openapi_extra=_body("EndpointRequest"),
)
async def create_webhook_endpoint(
    request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> NewEndpoint:
    value = await _json(request)
    body = validate(_endpoint_request, value)
    check_url(body.url, services.settings, "/url")
    await once.begin(once.fingerprint(value))
    headers: dict[str, str] = {}

    def store() -> NewEndpoint:
        with services.database.transaction() as session:
            once.settle(session)
            row = WebhookRepository(session, tenant_id).create(**body.model_dump())
            endpoint = NewEndpoint(**Endpoint.of(row).model_dump(), secret=row.secret)
            headers["Location"] = f"{resources.base_url(request)}/v1/webhook_endpoints/{row.id}"
            once.keep(session, 201, endpoint, headers)
            return endpoint

    endpoint = await run_in_threadpool(store)
    response.headers.update(headers)
    return endpoint


@router.get(
    "/webhook_endpoints",
    summary="List webhook endpoints",
    description="Those for all jobs; with `job`, the one that came with that job.",
    responses=problems(401),
)
def list_webhook_endpoints(
    services: ServicesOf,
    tenant_id: TenantId,
    page: PageOfEndpoints,
    job: Annotated[str | None, Query(max_length=32, description="A job's id.")] = None,
) -> EndpointList:
    with services.database.read() as session:
        found = WebhookRepository(session, tenant_id).list(*page, job)
    return EndpointList.of(found, Endpoint.of)


@router.get("/webhook_endpoints/{endpoint_id}", summary="Look at a webhook endpoint", responses=problems(401, 404))
def get_webhook_endpoint(endpoint_id: str, services: ServicesOf, tenant_id: TenantId) -> Endpoint:
    with services.database.read() as session:
        return Endpoint.of(WebhookRepository(session, tenant_id).get(endpoint_id))


@router.get(
    "/webhook_endpoints/{endpoint_id}/secret",
    summary="Fetch the secret that signs an endpoint's messages",
    dependencies=[Depends(admin_only)],
    responses=problems(401, 403, 404),
)
def get_webhook_secret(
    endpoint_id: str, response: Response, services: ServicesOf, tenant_id: TenantId
) -> EndpointSecret:
    response.headers["Cache-Control"] = "no-store"
    with services.database.read() as session:
        return EndpointSecret(secret=WebhookRepository(session, tenant_id).get(endpoint_id).secret)


@router.patch(
    "/webhook_endpoints/{endpoint_id}",
    summary="Change, disable or enable a webhook endpoint",
    dependencies=[Depends(admin_only)],
    responses=problems(401, 403, 404, 413, 415),
    openapi_extra=_body("EndpointChange"),
)
async def change_webhook_endpoint(
    endpoint_id: str, request: Request, services: ServicesOf, tenant_id: TenantId
) -> Endpoint:
    body = validate(_endpoint_change, await _json(request))
    check_url(body.url, services.settings, "/url")

    def store() -> Endpoint:
        status = None if body.status is None else EndpointStatus(body.status)
        with services.database.transaction() as session:
            row = WebhookRepository(session, tenant_id).change(
                endpoint_id, url=body.url, events=body.events, description=body.description, status=status
            )
            return Endpoint.of(row)

    return await run_in_threadpool(store)


@router.delete(
    "/webhook_endpoints/{endpoint_id}",
    status_code=204,
    summary="Delete a webhook endpoint and its deliveries",
    dependencies=[Depends(admin_only)],
    responses=problems(401, 403, 404),
)
def delete_webhook_endpoint(endpoint_id: str, services: ServicesOf, tenant_id: TenantId) -> None:
    with services.database.transaction() as session:
        WebhookRepository(session, tenant_id).delete(endpoint_id)


@router.get(
    "/webhook_endpoints/{endpoint_id}/deliveries",
    summary="List what was sent to an endpoint",
    responses=problems(401, 404),
)
def list_webhook_deliveries(
    endpoint_id: str, services: ServicesOf, tenant_id: TenantId, page: PageOfDeliveries
) -> DeliveryList:
    with services.database.read() as session:
        found = WebhookRepository(session, tenant_id).deliveries(endpoint_id, *page)
    return DeliveryList.of(found, Delivery.of)


@router.post(
    "/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    summary="Send a message again",
    description="Under the same `webhook-id`, from the beginning of the schedule.",
    responses=problems(401, 403, 404, 409),
)
def redeliver_webhook(endpoint_id: str, delivery_id: str, services: ServicesOf, tenant_id: TenantId) -> Delivery:
    with services.database.transaction() as session:
        return Delivery.of(WebhookRepository(session, tenant_id).redeliver(endpoint_id, delivery_id))
