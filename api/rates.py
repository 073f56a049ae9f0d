"""How often one key may call: a token bucket for each, and the fields that tell of it (draft-ietf-httpapi-ratelimit-headers).

    RateLimit-Policy: "key";q=6000;w=60       so many requests in so many seconds
    RateLimit: "key";r=5998;t=1               so many are left, all of them again after so many seconds

The buckets are this process's own: a look at shared ones would cost more than most of the requests that it counts. Behind
N API processes a key has up to N times the rate; the limit protects each of them, which is what it is for.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60
_MOST_BUCKETS = 10_000


@dataclass(frozen=True)
class Allowance:
    """What a key has after one request. `retry_after_s` is None if that was allowed."""

    limit: int
    remaining: int
    full_in_s: int
    retry_after_s: int | None

    @property
    def headers(self) -> dict[str, str]:
        told = {
            "RateLimit-Policy": f'"key";q={self.limit};w={WINDOW_S}',
            "RateLimit": f'"key";r={self.remaining};t={self.full_in_s}',
        }
        return told if self.retry_after_s is None else {**told, "Retry-After": str(self.retry_after_s)}


class RateLimiter:
    """`limit` requests a minute for each key; all of them may come at once, after a minute's rest."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._rate = limit / WINDOW_S
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key_id: str) -> Allowance:
        """Count one request."""
        now = self._clock()
        with self._lock:
            tokens, at = self._buckets.get(key_id, (float(self._limit), now))
            tokens = min(float(self._limit), tokens + (now - at) * self._rate)
            allowed = tokens >= 1
            tokens -= allowed
            if len(self._buckets) >= _MOST_BUCKETS and key_id not in self._buckets:
                self._forget_full(now)
            self._buckets[key_id] = (tokens, now)
        return Allowance(
            limit=self._limit,
            remaining=int(tokens),
            full_in_s=math.ceil((self._limit - tokens) / self._rate),
            retry_after_s=None if allowed else max(1, math.ceil((1 - tokens) / self._rate)),
        )

    def _forget_full(self, now: float) -> None:
        self._buckets = {
            key: (tokens, at)
            for key, (tokens, at) in self._buckets.items()
            if tokens + (now - at) * self._rate < self._limit
        }
