"""Calls that run behind their caller: in order, never two at once, and nothing of what goes wrong is lost."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from api.behind import Behind


def test_calls_run_one_at_a_time_in_order_while_the_caller_goes_on():
    running, seen, going_on = threading.Lock(), [], threading.Event()

    def slow(number: int) -> None:
        assert running.acquire(blocking=False)
        assert going_on.wait(10)
        seen.append(number)
        running.release()

    async def main() -> None:
        async with Behind() as behind:
            await behind.call(slow, 0)
            assert seen == []
            going_on.set()
            for number in range(1, 20):
                await behind.call(slow, number)
        assert seen == list(range(20))

    asyncio.run(main())


def test_what_a_call_raises_is_raised_by_the_next_one_or_by_the_end():
    def fail(number: int) -> None:
        raise OSError(number)

    async def next_one() -> None:
        async with Behind() as behind:
            await behind.call(fail, 1)
            await behind.call(fail, 2)

    async def end() -> None:
        async with Behind() as behind:
            await behind.call(fail, 1)

    for main in (next_one, end):
        with pytest.raises(OSError, match="1"):
            asyncio.run(main())


def test_a_block_that_fails_waits_for_the_call_and_tells_its_own_trouble():
    ended = []

    def slow_failure(number: int) -> None:
        time.sleep(0.1)
        ended.append(number)
        raise OSError("disk")

    async def main() -> None:
        async with Behind() as behind:
            await behind.call(slow_failure, 1)
            raise ValueError("form")

    with pytest.raises(ValueError, match="form"):
        asyncio.run(main())
    assert ended == [1]
