"""Whose key this is and where a job stands, for every request that asks at this moment in one look at the database.

Most requests are polls that learn that nothing has changed, and a thread and a transaction for each would be most of their
cost. So while one look is under way, those who ask meanwhile are collected for the next: nobody gets an answer that is
older than the question (a key that was revoked is refused at once), and the busier a process is, the less each one costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import Connection

from store.database import Database
from store.jobs import JobMark, job_marks
from store.keys import KeyHolder, key_holders

AT_ONCE = 200


@dataclass(frozen=True)
class Answer:
    """`key` is None for a secret that opens nothing, `job` where there is none; both where nothing was asked."""

    key: KeyHolder | None
    job: JobMark | None


@dataclass(frozen=True)
class _Question:
    secret: str | None
    job_id: str | None
    answer: asyncio.Future[Answer]


class Marks:
    """Its methods belong to the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: list[_Question] = []
        self._task: asyncio.Task[None] | None = None
        # One of its own: the others may all be busy with requests, and a poll must not wait for them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="marks")

    async def ask(self, secret: str | None = None, job_id: str | None = None) -> Answer:
        """Whom the secret of an API key belongs to, and where the job stands, whoever that belongs to."""
        question = _Question(secret, job_id, asyncio.get_running_loop().create_future())
        self._asked.append(question)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="marks")
        return await question.answer

    async def _look(self) -> None:
        while self._asked:
            asked, self._asked = self._asked[:AT_ONCE], self._asked[AT_ONCE:]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, asked)
            except Exception as error:  # raised where the answers are awaited
                for question in asked:
                    if not question.answer.done():  # who asked may be gone
                        question.answer.set_exception(error)
                continue
            for question, answer in zip(asked, answers, strict=True):
                if not question.answer.done():
                    question.answer.set_result(answer)

    def _read(self, asked: Sequence[_Question]) -> list[Answer]:
        secrets = {question.secret for question in asked if question.secret is not None}
        ids = {question.job_id for question in asked if question.job_id is not None}

        def read(connection: Connection) -> tuple[dict[str, KeyHolder], dict[str, JobMark]]:
            return key_holders(connection, secrets) if secrets else {}, job_marks(connection, ids) if ids else {}

        keys, jobs = self._database.look(read)
        return [Answer(keys.get(question.secret or ""), jobs.get(question.job_id or "")) for question in asked]
