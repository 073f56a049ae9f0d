"""Ids: a prefix that names the kind, and a ULID, so that sorting by id is sorting by age.

Within one process ids strictly increase, even inside one millisecond or when the clock steps back; that makes
"newest first" and cursors by id exact. Different processes agree to within their clocks.
"""

from __future__ import annotations

import secrets
import threading
import time
from typing import Literal

from ulid import ULID

Prefix = Literal["mdl", "ds", "job", "pln", "upl", "key", "whk", "evt"]

_RANDOM_BITS = 80


class MonotonicUlids:
    """A source of strictly increasing ULIDs, safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> str:
        fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
        with self._lock:
            value = fresh if fresh >> _RANDOM_BITS > self._last >> _RANDOM_BITS else self._last + 1
            self._last = value
        return str(ULID.from_int(value))


_ulids = MonotonicUlids()


def new_id(prefix: Prefix) -> str:
    """A new id, for example `job_01J9Z3K4M5N6P7Q8R9S0T1V2W3`."""
    return f"{prefix}_{_ulids.next()}"
