"""A way to a server that fails on purpose: an HTTP forwarder that does to chosen requests what networks do, and S3."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)

Kind = Literal["slow_down", "refuse", "cut", "lose_answer"]


@dataclass
class Fault:
    """Done to the next `times` requests that `matches` (method, path with query).

    slow_down: 503, the request never arrives. refuse: the connection ends unanswered, the request never arrives.
    cut: the answer stops after half of its body. lose_answer: the request arrives, its answer does not.
    """

    kind: Kind
    matches: Callable[[str, str], bool]
    times: int = 1


@dataclass(frozen=True)
class Seen:
    """A request that came by; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class FaultyWay:
    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str, headers: Mapping[str, str]) -> Kind | None:
        with self.lock:
            self.seen.append(Seen(method, path, {name.lower(): value for name, value in headers.items()}))
            for fault in self.faults:
                if fault.times > 0 and fault.matches(method, path):
                    fault.times -= 1
                    return fault.kind
        return None


@contextmanager
def faulty_way(to: str) -> Iterator[FaultyWay]:
    """A forwarder to the HTTP server `to`."""
    target = urlsplit(to)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = way.take(self.command, self.path, dict(self.headers))
            if fault == "refuse":
                self.close_connection = True
                return
            if fault == "slow_down":
                self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN, len(SLOW_DOWN))
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=30)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
            if fault == "lose_answer":
                self.close_connection = True
                return
            headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection", "content-length")
            ]
            length = int(answer.getheader("Content-Length") or len(data))
            self._answer(answer.status, headers, data[: len(data) // 2] if fault == "cut" else data, length)
            self.close_connection = fault == "cut"

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    way = FaultyWay(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield way
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
