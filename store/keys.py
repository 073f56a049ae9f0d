"""API keys: shown once, kept as a digest. A key is 144 random bits, so a plain SHA-256 is enough."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from secrets import token_urlsafe

from sqlalchemy import Connection, Select, bindparam, exists, or_, select
from sqlalchemy.orm import Session

from store import dialect
from store.errors import NotFound
from store.identifiers import new_id
from store.tables import ApiKey, Scope, Tenant

KEY_PREFIX = "pw_live_"
TENANT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SHOWN_CHARACTERS = len(KEY_PREFIX) + 4

_VALID = (
    ApiKey.revoked_at.is_(None),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > dialect.database_now()),
)


@dataclass(frozen=True)
class KeyHolder:
    """Who called: what a valid key opens, and what it may do there."""

    key_id: str
    tenant_id: str
    scope: Scope


class KeyRepository:
    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(self, name: str, scope: Scope = Scope.admin, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
        """A new key: its row, and the secret, which can never be had again."""
        secret = KEY_PREFIX + token_urlsafe(24)
        key = ApiKey(
            id=new_id("key"),
            tenant_id=self._tenant_id,
            name=name,
            prefix=secret[:_SHOWN_CHARACTERS],
            sha256=_digest(secret),
            scope=scope,
            created_at=dialect.now(self._session),
            expires_at=expires_at,
        )
        self._session.add(key)
        self._session.flush()
        return key, secret

    def list(self) -> Sequence[ApiKey]:
        """All keys, newest first, revoked ones included."""
        return self._session.scalars(self._mine().order_by(ApiKey.id.desc())).all()

    def revoke(self, id: str) -> ApiKey:
        """End a key; again is harmless. Raises NotFound."""
        key = self._session.scalar(self._mine().where(ApiKey.id == id).with_for_update())
        if key is None:
            raise NotFound("key", id)
        key.revoked_at = key.revoked_at or dialect.now(self._session)
        self._session.flush()
        return key

    def _mine(self) -> Select[tuple[ApiKey]]:
        return select(ApiKey).where(ApiKey.tenant_id == self._tenant_id)


# Built once: building it would cost more than asking it.
_HOLDERS = select(*(ApiKey.__table__.c[name] for name in ("sha256", "id", "tenant_id", "scope"))).where(
    ApiKey.sha256.in_(bindparam("digests", expanding=True)), *_VALID
)


def key_holders(session: Session | Connection, secrets: Collection[str]) -> dict[str, KeyHolder]:
    """The valid keys among these secrets, in one query. It looks by digest, so its timing says nothing about any stored key."""
    digests = {_digest(secret): secret for secret in secrets}
    rows = session.execute(_HOLDERS, {"digests": list(digests)})
    return {digests[sha256]: KeyHolder(*holder) for sha256, *holder in rows}


def any_valid_key(session: Session) -> bool:
    """Whether anyone could authenticate at all."""
    return bool(session.scalar(select(exists().where(*_VALID))))


def all_keys(session: Session) -> Sequence[ApiKey]:
    """The keys of every tenant, newest first: for whoever runs the installation."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id.desc())).all()


def all_tenants(session: Session) -> Sequence[str]:
    """The ids of every tenant, in their order."""
    return session.scalars(select(Tenant.id).order_by(Tenant.id)).all()


def require_tenant(session: Session, id: str) -> None:
    """Make the tenant unless it is there. Raises ValueError for an id that cannot be one."""
    if not TENANT_ID.fullmatch(id):
        raise ValueError(f"A tenant is called by lower case letters, digits, '-' and '_', at most 32, not {id!r}.")
    if session.get(Tenant, id) is None:
        session.add(Tenant(id=id, name=id, created_at=dialect.now(session)))
        session.flush()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
