"""Webhook endpoints of one tenant and what was sent to them. Sending is in `store.deliveries` and `worker.webhooks`.

An endpoint hears of every job of its tenant, or, if it came with a job's own `webhook`, of that job alone. Its secret is
kept as it is, because every message is signed with it.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from store import dialect
from store.errors import Conflict, NotFound
from store.identifiers import new_id
from store.pages import DEFAULT_LIMIT, Order, Page, fetch_page
from store.tables import DeliveryStatus, EndpointStatus, WebhookDelivery, WebhookEndpoint

SECRET_PREFIX = "whsec_"
MAX_ENDPOINTS = 50
_SECRET_BYTES = 32


def new_secret() -> str:
    """A signing secret as Standard Webhooks writes it."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


class WebhookRepository:
    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(
        self,
        *,
        url: str,
        events: Sequence[str],
        description: str | None = None,
        secret: str | None = None,
        job_id: str | None = None,
    ) -> WebhookEndpoint:
        """A new endpoint; without a `secret` it gets one. Raises Conflict `too_many_endpoints`."""
        if job_id is None:
            own = select(func.count()).select_from(self._mine().where(WebhookEndpoint.job_id.is_(None)).subquery())
            if (self._session.scalar(own) or 0) >= MAX_ENDPOINTS:
                raise Conflict("too_many_endpoints", f"There are {MAX_ENDPOINTS} webhook endpoints; delete one first.")
        endpoint = WebhookEndpoint(
            id=new_id("whk"),
            tenant_id=self._tenant_id,
            job_id=job_id,
            url=url,
            events=list(events),
            description=description,
            secret=secret or new_secret(),
            status=EndpointStatus.active,
            created_at=dialect.now(self._session),
        )
        self._session.add(endpoint)
        self._session.flush()
        return endpoint

    def get(self, id: str) -> WebhookEndpoint:
        """Raises NotFound."""
        return self._found(self._mine().where(WebhookEndpoint.id == id), id)

    def of_job(self, job_id: str) -> WebhookEndpoint | None:
        return self._session.scalar(self._mine().where(WebhookEndpoint.job_id == job_id))

    def list(
        self, limit: int = DEFAULT_LIMIT, after: str | None = None, order: Order = "desc", job_id: str | None = None
    ) -> Page[WebhookEndpoint]:
        """The tenant's own endpoints, or that of one job."""
        owner = WebhookEndpoint.job_id.is_(None) if job_id is None else WebhookEndpoint.job_id == job_id
        return fetch_page(
            self._session, self._mine().where(owner), WebhookEndpoint.id, limit=limit, after=after, order=order
        )

    def change(
        self,
        id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        status: EndpointStatus | None = None,
    ) -> WebhookEndpoint:
        """Change what is given. An endpoint that is made active again starts with a clean record. Raises NotFound."""
        endpoint = self._found(self._mine().where(WebhookEndpoint.id == id).with_for_update(), id)
        endpoint.url = url or endpoint.url
        endpoint.events = endpoint.events if events is None else list(events)
        endpoint.description = endpoint.description if description is None else description
        if status is EndpointStatus.active:
            endpoint.status, endpoint.disabled_reason, endpoint.failing_since = status, None, None
        elif status is EndpointStatus.disabled:
            disable(self._session, endpoint, "It was disabled by hand.")
        self._session.flush()
        return endpoint

    def delete(self, id: str) -> None:
        """Raises NotFound."""
        self._session.delete(self._found(self._mine().where(WebhookEndpoint.id == id).with_for_update(), id))
        self._session.flush()

    def deliveries(
        self, endpoint_id: str, limit: int = DEFAULT_LIMIT, after: str | None = None, order: Order = "desc"
    ) -> Page[WebhookDelivery]:
        """Raises NotFound."""
        self.get(endpoint_id)
        statement = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
        return fetch_page(self._session, statement, WebhookDelivery.id, limit=limit, after=after, order=order)

    def redeliver(self, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
        """Send a delivery once more, under the same id, from the beginning of its schedule. Raises NotFound, and Conflict
        `endpoint_disabled`."""
        endpoint = self.get(endpoint_id)
        statement = select(WebhookDelivery).where(
            WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.id == delivery_id
        )
        delivery = self._session.scalar(statement.with_for_update(), execution_options={"populate_existing": True})
        if delivery is None:
            raise NotFound("delivery", delivery_id)
        if endpoint.status is EndpointStatus.disabled:
            raise Conflict("endpoint_disabled", f"The endpoint {endpoint_id} is disabled; make it active first.")
        delivery.status, delivery.round = DeliveryStatus.pending, delivery.round + 1
        delivery.attempts, delivery.next_attempt_at = 0, dialect.now(self._session)
        self._session.flush()
        return delivery

    def _mine(self) -> Select[tuple[WebhookEndpoint]]:
        return select(WebhookEndpoint).where(WebhookEndpoint.tenant_id == self._tenant_id)

    def _found(self, statement: Select[tuple[WebhookEndpoint]], id: str) -> WebhookEndpoint:
        endpoint = self._session.scalar(statement, execution_options={"populate_existing": True})
        if endpoint is None:
            raise NotFound("webhook endpoint", id)
        return endpoint


def disable(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    """Send nothing more to this endpoint, locked by this transaction; what waits for it has failed."""
    endpoint.status, endpoint.disabled_reason = EndpointStatus.disabled, reason
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.status == DeliveryStatus.pending)
        .values(status=DeliveryStatus.failed, last_error=f"The endpoint was disabled. {reason}")
    )
