"""Blocking calls in a thread while their caller goes on: a file is digested and written while the next piece arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import anyio
from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class Behind:
    """Runs calls one at a time, in order. What one raises is raised by the next `call`, by `done`, or at the end of the
    block; a block that fails by itself waits for the call that runs, and says nothing of it."""

    def __init__(self) -> None:
        self._running: asyncio.Task[object] | None = None

    async def call(self, function: Callable[[T], object], argument: T) -> None:
        """Wait for the call before this one, start this one."""
        await self.done()
        self._running = asyncio.create_task(run_in_threadpool(function, argument))

    async def done(self) -> None:
        """Wait for the call that runs."""
        running, self._running = self._running, None
        if running is not None:
            await running

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.done()
        elif self._running is not None:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._running])
            self._running.exception()  # looked at: what went wrong first is told
