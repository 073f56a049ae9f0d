"""Tenants, their keys, and what they asked for with an idempotency key."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from store.tables.base import Base, Id, Scope, one_of

LOCAL_TENANT = "local"
"""The one tenant of the embedded mode; the first migration creates it."""


class Tenant(Base):
    """`quotas`: the limits of `store.quotas.LIMITS` that are this tenant's own, null for none; the others are the
    installation's."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime]
    quotas: Mapped[dict[str, Any] | None]


class ApiKey(Base):
    """A key of one tenant. Only the digest is kept; `prefix` is what a list may show."""

    __tablename__ = "api_keys"
    __table_args__ = (one_of("scope", Scope),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[Scope]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """A key that a client gave a request that creates: reserved by `holder` for a while, then with its answer."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "expires_at"),)

    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    operation: Mapped[str]
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    holder: Mapped[str | None] = mapped_column(String(32))
    reserved_until: Mapped[datetime | None]
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[str | None]
    resource_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
