"""Who may call: API keys, and the checks that keep other web pages out of a service on loopback without keys.

Without keys, anything that runs on this machine is trusted, a browser included; so a page from elsewhere must not be
able to use that browser. Its name for this machine (DNS can be rebound to 127.0.0.1) shows in Host, its own in Origin.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import Problem
from store.keys import KeyHolder
from store.settings import Settings
from store.tables import Scope as KeyScope

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, no port) means this machine."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def keys_required(settings: Settings) -> bool:
    """Whether every call needs an API key: always, unless bound to loopback and not asked for even there."""
    return settings.require_keys or not is_loopback(settings.host)


def secret_of(authorization: str | None) -> str:
    """The secret in an `Authorization` header. Raises the 401."""
    if authorization is None:
        raise _unauthorized("Send an API key: `Authorization: Bearer pw_live_…` (pennyweightd keys create makes one).")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("Use the Bearer scheme: `Authorization: Bearer pw_live_…`.")
    return secret.strip()


def require_key(holder: KeyHolder | None) -> KeyHolder:
    """Raises the 401 for a secret that opens nothing."""
    if holder is None:
        raise _unauthorized("This API key is unknown, has expired or was revoked.", error="invalid_token")
    return holder


def _unauthorized(detail: str, error: str | None = None) -> Problem:
    challenge = 'Bearer realm="pennyweight"' + (f', error="{error}"' if error else "")
    return Problem("unauthorized", detail, headers={"WWW-Authenticate": challenge})


def require_scope(key: KeyHolder, needed: KeyScope) -> None:
    """Raises the 403 for a key that may do less."""
    if not key.scope.includes(needed):
        raise Problem(
            "insufficient_scope",
            f"This API key may {key.scope.value}; this takes the scope {needed.value} "
            f"(pennyweightd keys create --scope {needed.value}).",
        )


class LoopbackGuard:
    """ASGI middleware of the keyless mode: checks Host on every request, and Origin on those that change something."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._hosts = frozenset(host.lower().rstrip(".") for host in settings.allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            if scope["method"] not in SAFE_METHODS and "origin" in headers:
                self._check_origin(headers["origin"], headers["host"])
        await self.app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        name = _split(f"http://{host}")[0]
        if not is_loopback(name) and name not in self._hosts:
            raise Problem(
                "host_not_allowed",
                f"Without API keys only loopback names are served, not {host[:255]!r}. Call http://127.0.0.1, or add the "
                "name to PENNYWEIGHT_ALLOWED_HOSTS.",
            )

    def _check_origin(self, origin: str, host: str) -> None:
        scheme = origin.partition(":")[0].lower()
        same = scheme in _DEFAULT_PORTS and _split(origin) == _split(f"{scheme}://{host}")
        if not same and origin.lower().rstrip("/") not in self._origins:
            raise Problem(
                "origin_not_allowed",
                f"A page from {origin[:255]!r} may not change anything here. If it should, add it to "
                "PENNYWEIGHT_ALLOWED_ORIGINS.",
            )


def _split(url: str) -> tuple[str, int | None]:
    """Host name (lower case, no trailing dot) and port of a URL; an unreadable one has neither."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return "", None
