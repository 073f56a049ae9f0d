"""One POST to an address that was checked: the name is resolved once, and the connection goes to what was checked.

No redirect is followed, no proxy of the environment is asked, and of the answer only its status counts. TLS and the Host
header use the name, so that certificates and virtual hosts work as ever.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence

from store.deliveries import Outcome
from store.webhook_urls import RefusedUrl, Target, WebhookPolicy

TIMEOUT_S = 15.0
"""For everything, from the connection to the last byte that is read."""

MAX_ANSWER_BYTES = 64 << 10
_CONNECT_TIMEOUT_S = 5.0

Resolver = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system knows them. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    policy: WebhookPolicy,
    resolver: Resolver = resolve,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Outcome:
    """Send it; whatever goes wrong is in the outcome, in words."""
    try:
        target = policy.target(url)
        addresses = resolver(target.host, target.port)
        policy.check(target, addresses)
        return _exchange(target, addresses, body, headers, tls, timeout_s)
    except RefusedUrl as error:
        return Outcome(error=f"Not sent: {error}.")
    except socket.gaierror:
        return Outcome(error="Not sent: the name has no address.")
    except ssl.SSLError as error:
        return Outcome(error=f"TLS failed: {error.reason or error}.")
    except TimeoutError:
        return Outcome(error=f"No answer within {timeout_s:g} s.")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Outcome(error=f"The connection failed: {error or type(error).__name__}.")


def _exchange(
    target: Target,
    addresses: Sequence[str],
    body: bytes,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None,
    timeout_s: float,
) -> Outcome:
    connection = _Pinned(target, addresses, tls, timeout_s)
    over = threading.Event()

    def cut() -> None:
        over.set()
        connection.cut()

    # A receiver that sends one byte now and then keeps every single read short of its timeout.
    watch = threading.Timer(timeout_s, cut)
    watch.daemon = True
    watch.start()
    try:
        connection.request("POST", target.path, body, {"Host": target.host_header, **headers})
        answer = connection.getresponse()
        answer.read(MAX_ANSWER_BYTES)
        return _outcome(answer)
    except (OSError, http.client.HTTPException) as error:
        if over.is_set():
            raise TimeoutError from error
        raise
    finally:
        watch.cancel()
        connection.close()


def _outcome(answer: http.client.HTTPResponse) -> Outcome:
    error = None
    if 300 <= answer.status < 400:
        error = f"It answered {answer.status}, and redirects are not followed: name the final URL."
    elif answer.status >= 400:
        error = f"It answered {answer.status}."
    wait = answer.headers.get("Retry-After", "").strip()
    asked = answer.status in (429, 503) and wait.isascii() and wait.isdecimal()
    return Outcome(status=answer.status, error=error, retry_after_s=float(wait[:9]) if asked else None)


class _Pinned(http.client.HTTPConnection):
    """A connection to one of these addresses, whatever its host's name would resolve to now."""

    def __init__(self, target: Target, addresses: Sequence[str], tls: ssl.SSLContext | None, timeout_s: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout_s)
        self._target = target
        self._addresses = addresses
        self._tls = (tls or ssl.create_default_context()) if target.scheme == "https" else None

    def connect(self) -> None:
        connected = self._first_that_answers()
        connected.settimeout(self.timeout)
        self.sock = connected
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(connected, server_hostname=self._target.host)

    def cut(self) -> None:
        """End it from another thread: whoever reads gets an error."""
        connected = self.sock
        if connected is not None:
            try:
                connected.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def _first_that_answers(self) -> socket.socket:
        for address in self._addresses[:-1]:
            try:
                return socket.create_connection((address, self._target.port), _CONNECT_TIMEOUT_S)
            except OSError:
                continue
        return socket.create_connection((self._addresses[-1], self._target.port), _CONNECT_TIMEOUT_S)
