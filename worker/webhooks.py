"""Sends webhooks: claims what is due, signs it as Standard Webhooks says, posts it, writes down what came of it.

Any number of senders may run at once, in any process; a message that a killed one held is due again when its lease ends.
A receiver may therefore get a message twice, under the same `webhook-id`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Self

from store.database import Database
from store.deliveries import DueDelivery, Outcome, claim_deliveries, settle
from store.webhook_urls import WebhookPolicy
from worker.pinned_http import post

logger = logging.getLogger(__name__)

AT_ONCE = 8
LOOK_EVERY_S = 1.0
AFTER_TROUBLE_S = 10.0

Post = Callable[[str, bytes, dict[str, str]], Outcome]


class WebhookSender:
    """A thread that sends until it is stopped, up to AT_ONCE messages at a time.

    with WebhookSender(database, settings.webhook_policy): …    # in every process that should send
    """

    def __init__(self, database: Database, policy: WebhookPolicy, post: Post | None = None) -> None:
        self._database = database
        self._post = post or partial(_post, policy=policy)
        self._stopping = threading.Event()
        self._slots = threading.Semaphore(AT_ONCE)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._run, name="webhook sender", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send nothing new, and wait for what is being sent (seconds)."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                found = self._send_due()
            except Exception:  # mostly the database's; this thread must live to look again
                logger.exception("Webhooks could not be claimed; next look in %g s.", AFTER_TROUBLE_S)
                self._stopping.wait(AFTER_TROUBLE_S)
                continue
            if not found:
                self._stopping.wait(LOOK_EVERY_S)

    def _send_due(self) -> int:
        """Hand what is due to free slots; returns how much that was. Waits for the first free slot."""
        if not self._slots.acquire(timeout=LOOK_EVERY_S):
            return 0
        free = 1
        while free < AT_ONCE and self._slots.acquire(blocking=False):
            free += 1
        due = []
        try:
            due = claim_deliveries(self._database, free)
        finally:
            for _ in range(free - len(due)):
                self._slots.release()
        for delivery in due:
            self._pool.submit(self._deliver, delivery)
        return len(due)

    def _deliver(self, due: DueDelivery) -> None:
        try:
            body = due.body.encode()
            outcome = self._post(due.url, body, signed_headers(due, body, int(time.time())))
            settle(self._database, due, outcome)
            if not outcome.delivered:
                logger.info("Webhook %s, attempt %d: %s", due.id, due.attempts, outcome.error)
        except Exception:  # in a pool's thread, where nobody would see it
            logger.exception("Webhook %s is due again when its lease ends.", due.id)
        finally:
            self._slots.release()


def signed_headers(due: DueDelivery, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers of Standard Webhooks 1.0; the signature is an HMAC-SHA256 of `id.timestamp.body`."""
    key = base64.b64decode(due.secret.removeprefix("whsec_"))
    mac = hmac.new(key, b".".join((due.id.encode(), str(timestamp).encode(), body)), hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "User-Agent": f"Pennyweight/{version('pennyweight-server')}",
        "webhook-id": due.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(mac.digest()).decode()}",
    }


def _post(url: str, body: bytes, headers: dict[str, str], *, policy: WebhookPolicy) -> Outcome:
    return post(url, body, headers, policy=policy)
