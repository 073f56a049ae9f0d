"""Waiting for jobs and plans without a thread or a connection: one task per process looks for everybody who waits.

A waiter says which version it has seen and sleeps on an event; ten times a second, one query for all of them tells whom
to wake. So a thousand waiters cost what one does, and requests that do not wait are answered as if there were none.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from store.database import Database
from store.versions import versions

logger = logging.getLogger("api")

LOOK_EVERY_S = 0.1
AFTER_TROUBLE_S = 2.0

T = TypeVar("T")


@dataclass(eq=False)
class _Waiter:
    seen: int | str
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Watcher:
    """All waiters of one process; its methods belong to the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: dict[str, set[_Waiter]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiters.values()))

    async def changed(self, id: str, seen: int | str, timeout_s: float) -> bool:
        """Wait until the job or plan `id` has another version than `seen`, or is gone; False after `timeout_s` seconds,
        or because the process stops."""
        if self._stopped:
            return False
        waiter = _Waiter(seen)
        self._waiters[id].add(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="watcher")
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.woken.wait()
            return not self._stopped
        except TimeoutError:
            return False
        finally:
            self._waiters[id].discard(waiter)
            if not self._waiters[id]:
                del self._waiters[id]

    def stop(self) -> None:
        """Send everybody who waits away, and nobody waits from now on."""
        self._stopped = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.woken.set()

    async def _look(self) -> None:
        """Until nobody waits any more. A thread of its own: the others may all be busy with requests."""
        self._limiter = self._limiter or anyio.CapacityLimiter(1)
        while self._waiters and not self._stopped:
            try:
                found = await anyio.to_thread.run_sync(self._versions, list(self._waiters), limiter=self._limiter)
            except SQLAlchemyError:
                logger.exception("Whether jobs have changed cannot be seen; next look in %g s.", AFTER_TROUBLE_S)
                await asyncio.sleep(AFTER_TROUBLE_S)
                continue
            for id, version in found.items():
                for waiter in self._waiters.get(id, ()):
                    if waiter.seen != version:
                        waiter.woken.set()
            await asyncio.sleep(LOOK_EVERY_S)

    def _versions(self, ids: list[str]) -> dict[str, int | str | None]:
        return {**dict.fromkeys(ids), **self._database.look(lambda connection: versions(connection, ids))}


async def unless_gone(request: Request, waiting: Callable[[], Awaitable[T]], otherwise: T) -> T:
    """The result of `waiting`, which is cancelled when the client goes away; then `otherwise`, which nobody reads.

    Raises what `waiting` raises, as it is: a task group would wrap it in an ExceptionGroup.
    """
    outcome, failure = otherwise, None
    async with anyio.create_task_group() as group:

        async def cancel_when_gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(cancel_when_gone)
        try:
            outcome = await waiting()
        except Exception as error:  # raised again below, outside the group
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return outcome
