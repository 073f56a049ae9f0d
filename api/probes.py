"""Is a part there? Asked with a time limit, by one thread per part, so that a part that hangs holds nothing else up.

A database behind a dead network answers neither yes nor no for minutes. Nobody waits that long here: the question goes on
in the background, one at a time, and whoever asks meanwhile hears that there is still no answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

from store.errors import StoreError

logger = logging.getLogger("api")

PROBE_TIMEOUT_S = 2.0

Answer = TypeVar("Answer")


class Part(BaseModel):
    """One part of the installation. A worker is `missing` before the first has started and `stale` when none has been
    heard of lately: uploads and jobs are accepted, and wait for one. `unknown`: the database did not say. `unused`: this installation has no such part."""

    status: Literal["ok", "down", "missing", "stale", "unknown", "unused"]
    detail: str | None = None


class Probe(Generic[Answer]):
    """The question `ask`, never more than once at the same time."""

    def __init__(self, what: str, ask: Callable[[], Answer], timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._what = what
        self._ask = ask
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._running: Future[Answer] | None = None

    async def answer(self) -> Answer | Part:
        """What `ask` gave, or the part as `down` with the reason."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(asyncio.wrap_future(self._begin()))
        except TimeoutError:
            logger.error("%s has not answered for %g s.", self._what, self._timeout_s)
            return Part(status="down", detail=f"{self._what} has not answered within {self._timeout_s:g} s.")
        except StoreError as error:
            logger.error("%s is not ready: %s", self._what, error)
            return Part(status="down", detail=str(error))
        except Exception as error:  # what is broken is the answer, and an answer there must be
            logger.error("%s is not ready", self._what, exc_info=error)
            detail = f"{self._what} does not work ({type(error).__name__}); the server's log has more."
            return Part(status="down", detail=detail)

    def _begin(self) -> Future[Answer]:
        with self._lock:
            if self._running is None:
                future: Future[Answer] = Future()
                self._running = future
                threading.Thread(target=self._run, args=(future,), name=f"probe {self._what}", daemon=True).start()
            return self._running

    def _run(self, future: Future[Answer]) -> None:
        try:
            found = self._ask()
        except BaseException as error:  # raised where the answer is awaited
            self._end()
            future.set_exception(error)
        else:
            self._end()
            future.set_result(found)

    def _end(self) -> None:
        with self._lock:
            self._running = None
