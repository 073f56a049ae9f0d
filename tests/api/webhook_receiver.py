"""A real receiver of webhooks on loopback, which answers as a test wants it to."""

from __future__ import annotations

import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from store.webhook_urls import WebhookPolicy

LOCAL = WebhookPolicy(allow=(ipaddress.ip_network("127.0.0.0/8"),))


@dataclass
class Receiver:
    """A receiver that answers with `statuses` in turn, the last one for ever."""

    url: str
    statuses: list[int] = field(default_factory=lambda: [204])
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    drip: bool = False

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.seen) < count:
            assert time.monotonic() < deadline, f"{len(self.seen)} of {count} messages arrived"
            time.sleep(0.02)


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
            time.sleep(receiver.pause_s)
            status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
            self.send_response(status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()
            while receiver.drip:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                receiver.drip = False

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/hook?x=1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
