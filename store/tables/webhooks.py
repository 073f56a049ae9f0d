"""Webhook endpoints and the messages to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from store.tables.base import Base, DeliveryStatus, EndpointStatus, Id, one_of


class WebhookEndpoint(Base):
    """Where a tenant, or one job of it, wants to be told what happens. `secret` signs every message."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "status", "job_id"),
        Index(None, "job_id"),
        one_of("status", EndpointStatus),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    job_id: Mapped[str | None] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"))
    url: Mapped[str]
    events: Mapped[list[Any]] = mapped_column(JSON(none_as_null=True))
    description: Mapped[str | None]
    secret: Mapped[str]
    status: Mapped[EndpointStatus]
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[datetime | None]
    created_at: Mapped[datetime]


class WebhookDelivery(Base):
    """One message to one endpoint: what it says, how often it was sent (in this `round`, which grows when somebody asks
    for it again), and when it is due next."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "endpoint_id", "id"),
        Index(None, "status", "next_attempt_at"),
        Index(None, "created_at"),
        one_of("status", DeliveryStatus),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(Id, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(Id)
    type: Mapped[str] = mapped_column(String(64))
    body: Mapped[str]
    status: Mapped[DeliveryStatus]
    round: Mapped[int]
    attempts: Mapped[int]
    next_attempt_at: Mapped[datetime]
    last_attempt_at: Mapped[datetime | None]
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
