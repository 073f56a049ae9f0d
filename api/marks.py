"""Where jobs stand, for every poll that asks at this moment in one query.

Most polls learn that nothing has changed, and a thread and a transaction for each would be most of their cost. So while one
look at the database is under way, those who ask meanwhile are collected for the next: nobody gets an answer that is older
than the question, and the busier a process is, the less each poll costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

from starlette.concurrency import run_in_threadpool

from store.database import Database
from store.jobs import JobMark, job_marks

AT_ONCE = 200


class JobMarks:
    """Its methods belong to the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: dict[str, asyncio.Future[JobMark | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, job_id: str) -> JobMark | None:
        """Where the job stands now, whoever it belongs to; None if there is none."""
        answer = self._asked.get(job_id)
        if answer is None:
            answer = self._asked[job_id] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="job marks")
        return await asyncio.shield(answer)

    async def _look(self) -> None:
        while self._asked:
            asked = dict(islice(self._asked.items(), AT_ONCE))
            for id in asked:
                del self._asked[id]
            try:
                found = await run_in_threadpool(self._read, list(asked))
            except Exception as error:
                for answer in asked.values():
                    answer.set_exception(error)
                continue
            for id, answer in asked.items():
                answer.set_result(found.get(id))

    def _read(self, ids: Sequence[str]) -> dict[str, JobMark]:
        with self._database.read() as session:
            return job_marks(session, ids)
