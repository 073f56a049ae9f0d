"""Where webhooks may go: the rules for their URLs, and for the addresses that a name in one resolves to.

Whoever may name a URL could otherwise have this server call what only this server can reach. So every address of a name
must be a public one, or lie in a network that the operator has listed (PENNYWEIGHT_WEBHOOK_ALLOW).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_LENGTH = 2048
_DEFAULT_PORTS = {"https": 443, "http": 80}

_NEVER: dict[Network, str] = {
    ipaddress.ip_network("::ffff:0:0/96"): "an IPv4 address in IPv6 clothes",
    ipaddress.ip_network("::/96"): "an IPv4 address in IPv6 clothes",
    ipaddress.ip_network("2002::/16"): "6to4, which leads to an IPv4 address",
    ipaddress.ip_network("64:ff9b::/96"): "NAT64, which leads to an IPv4 address",
    ipaddress.ip_network("64:ff9b:1::/48"): "NAT64, which leads to an IPv4 address",
    ipaddress.ip_network("2001::/32"): "Teredo, which leads to an IPv4 address",
    ipaddress.ip_network("fec0::/10"): "a private address",
    ipaddress.ip_network("192.88.99.0/24"): "a 6to4 relay",
    # A public number that never leaves the machine: Azure's host answers there.
    ipaddress.ip_network("168.63.129.16/32"): "a cloud's own address",
}


class RefusedUrl(ValueError):
    """A URL or address that webhooks do not go to; `str()` says why."""


@dataclass(frozen=True)
class Target:
    """A webhook's URL in parts. `path` has the query with it."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class WebhookPolicy:
    """Networks that webhooks may reach although they are not public, and the ports that they may use elsewhere."""

    allow: tuple[Network, ...] = ()
    ports: tuple[int, ...] = (443,)

    def target(self, url: str) -> Target:
        """The URL in parts. Raises RefusedUrl for what can never be called, whatever its name resolves to."""
        if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url:
            raise RefusedUrl(f"a URL has at most {MAX_URL_LENGTH} printable ASCII characters (spell names in punycode)")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise RefusedUrl(f"it cannot be read ({error})") from error
        if parts.scheme not in ("https", "http"):
            raise RefusedUrl("it must begin with https://")
        if parts.scheme == "http" and not self.allow:
            raise RefusedUrl("it must begin with https:// (http:// is for networks in PENNYWEIGHT_WEBHOOK_ALLOW)")
        if not parts.hostname:
            raise RefusedUrl("it has no host")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise RefusedUrl("it must not have a user name, a password or a fragment")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = Target(parts.scheme, parts.hostname.rstrip("."), port or _DEFAULT_PORTS[parts.scheme], path)
        if not self.allow and target.port not in self.ports:
            raise RefusedUrl(f"port {target.port} is not among {', '.join(map(str, self.ports))}")
        if _is_address(target.host):
            self.check(target, [target.host])
        return target

    def check(self, target: Target, addresses: Collection[str]) -> None:
        """Raises RefusedUrl unless every one of these addresses of the target's host may be called."""
        if not addresses:
            raise RefusedUrl(f"{target.host} has no address")
        for text in addresses:
            address = ipaddress.ip_address(text.split("%")[0])
            if any(address in network for network in self.allow):
                continue
            reason = _not_public(address)
            if reason is not None:
                raise RefusedUrl(f"{target.host} is {address}, {reason}; webhooks go to public addresses only")
            if target.scheme != "https":
                raise RefusedUrl(f"{target.host} is {address}, a public address, and those are called by https:// only")
            if target.port not in self.ports:
                raise RefusedUrl(f"port {target.port} is not among {', '.join(map(str, self.ports))}")


def _not_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    for network, reason in _NEVER.items():
        if address in network:
            return reason
    if address.is_loopback or address.is_unspecified:
        return "this machine"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    return None if address.is_global and not address.is_reserved else "a private address"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return True
