"""Anything, in any order: jobs are created, claimed, lost, cancelled, finished; a small model of the rules agrees.

What must hold after every step: the database says what the model says; a terminal job never changes again; an attempt
that does not hold the lease cannot write; events are numbered without gaps; every job can still be brought to an end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, update

from store import work
from store.claims import Claim, StoredArtifact
from store.contract import ErrorCode, ErrorInfo, JobProgress, JobStatus, WorkKind
from store.errors import Conflict, IllegalTransition, LeaseLost
from store.tables import Artifact, Job, JobEvent, Work
from store.waiting import LOSS_LIMIT
from tests.store.house import House, job_result

S = JobStatus
INTERNAL = ErrorInfo(code=ErrorCode.internal, message="?")


@dataclass
class Expected:
    """What the rules say about one job."""

    status: JobStatus = S.queued
    attempt: int = 0
    losses: int = 0
    holder: Claim | None = None
    artifacts: int = 0


class WorkMachine(RuleBasedStateMachine):
    new_house: Callable[[], House]
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.house = self.new_house()
        self.model = self.house.add_model()
        self.expected: dict[str, Expected] = {}
        self.frozen: dict[str, Any] = {}

    def teardown(self) -> None:
        """Whatever happened: left to one patient worker, every accepted job ends."""
        for _ in range(len(self.expected) + 1):
            self._expire(list(self.expected))
            while (claim := self._claim_one("patient")) is not None:
                work.finish_job(self.house.database, claim, result=job_result(), artifacts=[])
        with self.house.database.read() as session:
            assert all(status.terminal for status in session.scalars(select(Job.status)))
            assert [work_row.id for work_row in session.scalars(select(Work).where(Work.state != "done"))] == []
            for id, row in self.frozen.items():
                assert _row(session, id) == row
        self.house.database.dispose()

    # --- rules

    @rule()
    def create(self) -> None:
        self.expected[self.house.add_job(self.model)] = Expected()

    @rule(target=claims, worker=strategies.sampled_from(["a", "b"]))
    def claim(self, worker: str) -> Claim | None:
        queued = sorted(id for id, job in self.expected.items() if job.status is S.queued)
        claim = self._claim_one(worker)
        assert (claim and claim.id) == (queued[0] if queued else None)
        if claim is not None:
            job = self.expected[claim.id]
            job.status, job.attempt, job.holder = S.running, job.attempt + 1, claim
            assert claim.attempt == job.attempt
        return claim

    @rule(claim=claims, tell=strategies.booleans())
    def heartbeat(self, claim: Claim | None, tell: bool) -> None:
        progress = JobProgress(fraction=0.5) if tell else None
        job = self._write(claim, lambda c: work.heartbeat(self.house.database, c, 60, progress=progress, stage="plan"))
        if job is not None:
            assert self.answer.cancel_requested == (job.status is S.cancelling)

    @rule(claim=claims)
    def finish(self, claim: Claim | None) -> None:
        def write(c: Claim) -> JobStatus:
            artifact = StoredArtifact("model.onnx", "application/onnx", 1, "00" * 32, c.object_key("model.onnx"))
            return work.finish_job(self.house.database, c, result=job_result(), artifacts=[artifact])

        job = self._write(claim, write)
        if job is not None:
            self._end(job, S.cancelled if job.status is S.cancelling else S.succeeded)
            job.artifacts = int(job.status is S.succeeded)
            assert self.answer is job.status

    @rule(claim=claims)
    def fail(self, claim: Claim | None) -> None:
        job = self._write(claim, lambda c: work.fail_job(self.house.database, c, INTERNAL))
        if job is not None:
            self._end(job, S.cancelled if job.status is S.cancelling else S.failed)

    @rule(claim=consumes(claims))
    def release(self, claim: Claim | None) -> None:
        job = self._write(claim, lambda c: work.release(self.house.database, c))
        if job is not None:
            self._end(job, S.cancelled if job.status is S.cancelling else S.queued)

    @rule(claim=claims)
    def confirm_cancel(self, claim: Claim | None) -> None:
        if (
            claim is not None
            and self.expected[claim.id].holder is claim
            and self.expected[claim.id].status is S.running
        ):
            with pytest.raises(IllegalTransition):
                work.cancel_job(self.house.database, claim)
            return
        job = self._write(claim, lambda c: work.cancel_job(self.house.database, c))
        if job is not None:
            self._end(job, S.cancelled)

    @rule(data=strategies.data())
    def cancel(self, data: strategies.DataObject) -> None:
        if not self.expected:
            return
        id = data.draw(strategies.sampled_from(sorted(self.expected)))
        job = self.expected[id]
        if job.status in (S.succeeded, S.failed):
            with pytest.raises(Conflict):
                self.house.cancel(id)
            return
        if job.status is S.queued:
            job.status = S.cancelled
        elif job.status is S.running:
            job.status = S.cancelling
        assert self.house.cancel(id).status is job.status

    @rule(data=strategies.data())
    def expire(self, data: strategies.DataObject) -> None:
        held = sorted(id for id, job in self.expected.items() if job.holder is not None)
        chosen = data.draw(strategies.lists(strategies.sampled_from(held), unique=True)) if held else []
        assert self._expire(chosen) == len(chosen)
        for id in chosen:
            self._lost(self.expected[id])

    @rule(owner=strategies.sampled_from(["a", "b"]))
    def restart_after_a_crash(self, owner: str) -> None:
        held = [job for job in self.expected.values() if job.holder is not None and job.holder.worker_id == owner]
        assert work.release_owner(self.house.database, owner) == len(held)
        for job in held:
            self._lost(job)

    # --- invariants

    @invariant()
    def the_database_agrees_with_the_rules(self) -> None:
        with self.house.database.read() as session:
            for id, job in self.expected.items():
                row = session.get_one(Job, id)
                assert (row.status, row.attempt) == (job.status, job.attempt)
                held = session.get_one(Work, id)
                assert (held.lease_owner, held.losses) == (job.holder and job.holder.worker_id, job.losses)
                assert len(session.scalars(select(Artifact).where(Artifact.job_id == id)).all()) == job.artifacts
                events = session.scalars(select(JobEvent).where(JobEvent.job_id == id).order_by(JobEvent.seq)).all()
                assert [event.seq for event in events] == list(range(1, row.last_event_seq + 1))
                ends = [event for event in events if event.type in ("job.succeeded", "job.failed", "job.cancelled")]
                assert len(ends) == int(row.status.terminal)
                if row.status.terminal:
                    assert self.frozen.setdefault(id, _row(session, id)) == _row(session, id)

    # --- helpers

    def _claim_one(self, worker: str) -> Claim | None:
        return work.claim(self.house.database, worker_id=worker, kinds={WorkKind.job}, queues={"cpu"}, lease_s=3600)

    def _write(self, claim: Claim | None, write: Callable[[Claim], Any]) -> Expected | None:
        """Write with a claim: the job's rules if it held the lease, None if it was rightly fenced."""
        if claim is None:
            return None
        job = self.expected[claim.id]
        if job.holder is not claim:
            with pytest.raises(LeaseLost):
                write(claim)
            return None
        self.answer = write(claim)
        return job

    def _end(self, job: Expected, status: JobStatus) -> None:
        job.status, job.holder = status, None

    def _lost(self, job: Expected) -> None:
        job.losses += 1
        if job.status is S.cancelling:
            self._end(job, S.cancelled)
        else:
            self._end(job, S.failed if job.losses == LOSS_LIMIT else S.queued)

    def _expire(self, ids: list[str]) -> int:
        with self.house.database.transaction() as session:
            past = self.house.database.now(session) - timedelta(seconds=1)
            session.execute(update(Work).where(Work.id.in_(ids), Work.state == "running").values(lease_expires_at=past))
        return work.expire_leases(self.house.database, backoff_s=0)


def _row(session: Any, id: str) -> Any:
    return session.execute(Job.__table__.select().where(Job.id == id)).one()


def test_leases_cancellations_and_ends_in_any_order_follow_the_rules(new_house: Callable[[], House]) -> None:
    machine = type("Machine", (WorkMachine,), {"new_house": staticmethod(new_house)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        ),
    )
