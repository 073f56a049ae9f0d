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
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select, update

from store import work
from store.claims import Claim, StoredArtifact
from store.contract import ErrorCode, ErrorInfo, JobProgress, JobStatus, WorkKind
from store.database import Database
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
    holder: str | None = None
    artifacts: int = 0


PICK = strategies.integers(min_value=0, max_value=11)
"""Chooses one of however many there are."""
WORKER = strategies.sampled_from(["a", "b", None])


class WorkMachine(RuleBasedStateMachine):
    new_house: Callable[[], House]

    def __init__(self) -> None:
        super().__init__()
        self.house = self.new_house()
        self.database = self.house.database
        self.model = self.house.add_model()
        self.expected: dict[str, Expected] = {}
        self.held: list[Claim] = []
        self.stale: list[Claim] = []
        self.frozen: dict[str, Any] = {}

    def teardown(self) -> None:
        """Whatever happened: left to one patient worker, every accepted job ends."""
        self._expire(self.held)
        while (claim := self._claim_one("patient")) is not None:
            work.finish_job(self.database, claim, result=job_result(), artifacts=[])
        with self.database.read() as session:
            assert all(status.terminal for status in session.scalars(select(Job.status)))
            assert session.scalars(select(Work.id).where(Work.state != "done")).all() == []
            for id, row in self.frozen.items():
                assert _row(session, id) == row
        self.database.dispose()

    # --- rules

    @precondition(lambda self: len(self._with(S.queued)) < 2)
    @rule(then_claim=WORKER)
    def create(self, then_claim: str | None) -> None:
        self.expected[self.house.add_job(self.model)] = Expected()
        if then_claim:
            self.claim(then_claim)

    @rule(worker=strategies.sampled_from(["a", "b"]))
    def claim(self, worker: str) -> None:
        queued = self._with(S.queued)
        claim = self._claim_one(worker)
        assert (claim and claim.id) == (queued[0] if queued else None)
        if claim is not None:
            job = self.expected[claim.id]
            job.status, job.attempt, job.holder = S.running, job.attempt + 1, worker
            assert claim.attempt == job.attempt
            self.held.append(claim)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, tell=strategies.booleans())
    def heartbeat(self, pick: int, tell: bool) -> None:
        claim = self.held[pick % len(self.held)]
        progress = JobProgress(fraction=0.5) if tell else None
        answer = work.heartbeat(self.database, claim, 60, progress=progress, stage="plan")
        assert answer.cancel_requested == (self.expected[claim.id].status is S.cancelling)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, how=strategies.sampled_from(["finish", "fail", "release", "cancel"]))
    def end_an_attempt(self, pick: int, how: str) -> None:
        claim = self.held[pick % len(self.held)]
        job = self.expected[claim.id]
        match how:
            case "finish":
                status = _finish(self.database, claim)
                self._left(claim, otherwise=S.succeeded)
                job.artifacts = int(job.status is S.succeeded)
                assert status is job.status
            case "fail":
                status = work.fail_job(self.database, claim, INTERNAL)
                self._left(claim, otherwise=S.failed)
                assert status is job.status
            case "release":
                work.release(self.database, claim)
                self._left(claim, otherwise=S.queued)
            case "cancel" if job.status is S.running:
                with pytest.raises(IllegalTransition):
                    work.cancel_job(self.database, claim)
            case "cancel":
                work.cancel_job(self.database, claim)
                self._left(claim, otherwise=S.cancelled)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, how=strategies.sampled_from(["expire", "expire all", "restart", "report"]), then_claim=WORKER)
    def lose_attempts(self, pick: int, how: str, then_claim: str | None) -> None:
        claim = self.held[pick % len(self.held)]
        lost = [claim]
        match how:
            case "expire":
                assert self._expire(lost) == 1
            case "expire all":
                lost = list(self.held)
                assert self._expire(lost) == len(lost)
            case "restart":
                lost = [held for held in self.held if held.worker_id == claim.worker_id]
                assert work.release_owner(self.database, claim.worker_id) == len(lost)
            case "report":
                work.lose(self.database, claim)
                with self.database.transaction() as session:  # the backoff passes
                    now = self.database.now(session)
                    session.execute(update(Work).where(Work.id == claim.id).values(available_at=now))
        for each in lost:
            self._lost(each)
        if then_claim:
            self.claim(then_claim)

    @precondition(lambda self: self.expected)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        choices = self._with(S.running, S.cancelling) or sorted(self.expected)
        job = self.expected[id := choices[pick % len(choices)]]
        if job.status in (S.succeeded, S.failed):
            with pytest.raises(Conflict):
                self.house.cancel(id)
            return
        job.status = {S.queued: S.cancelled, S.running: S.cancelling}.get(job.status, job.status)
        assert self.house.cancel(id).status is job.status

    @precondition(lambda self: self.stale)
    @rule(pick=PICK, write=strategies.sampled_from(["heartbeat", "finish", "fail", "cancel", "release", "lose"]))
    def write_with_a_stale_claim(self, pick: int, write: str) -> None:
        reclaimed = [claim for claim in self.stale if self.expected[claim.id].holder is not None]
        claims = reclaimed or self.stale
        claim = claims[pick % len(claims)]
        with pytest.raises(LeaseLost):
            match write:
                case "heartbeat":
                    work.heartbeat(self.database, claim, 60, stage="stale")
                case "finish":
                    _finish(self.database, claim)
                case "fail":
                    work.fail_job(self.database, claim, INTERNAL)
                case "cancel":
                    work.cancel_job(self.database, claim)
                case "release":
                    work.release(self.database, claim)
                case "lose":
                    work.lose(self.database, claim)

    # --- invariants

    @invariant()
    def the_database_agrees_with_the_rules(self) -> None:
        with self.database.read() as session:
            for id, job in self.expected.items():
                row = session.get_one(Job, id)
                assert (row.status, row.attempt) == (job.status, job.attempt)
                held = session.get_one(Work, id)
                assert (held.lease_owner, held.losses) == (job.holder, job.losses)
                assert len(session.scalars(select(Artifact).where(Artifact.job_id == id)).all()) == job.artifacts
                events = session.scalars(select(JobEvent).where(JobEvent.job_id == id).order_by(JobEvent.seq)).all()
                assert [event.seq for event in events] == list(range(1, row.last_event_seq + 1))
                ends = [event for event in events if event.type in ("job.succeeded", "job.failed", "job.cancelled")]
                assert len(ends) == int(row.status.terminal)
                if row.status.terminal:
                    assert self.frozen.setdefault(id, _row(session, id)) == _row(session, id)

    # --- helpers

    def _with(self, *statuses: JobStatus) -> list[str]:
        return sorted(id for id, job in self.expected.items() if job.status in statuses)

    def _claim_one(self, worker: str) -> Claim | None:
        return work.claim(self.database, worker_id=worker, kinds={WorkKind.job}, queues={"cpu"}, lease_s=3600)

    def _left(self, claim: Claim, *, otherwise: JobStatus) -> None:
        """The claim is given up: a cancelling job is cancelled, another one gets the status `otherwise`."""
        job = self.expected[claim.id]
        job.status = S.cancelled if job.status is S.cancelling else otherwise
        job.holder = None
        self.held.remove(claim)
        self.stale.append(claim)

    def _lost(self, claim: Claim) -> None:
        job = self.expected[claim.id]
        job.losses += 1
        self._left(claim, otherwise=S.failed if job.losses == LOSS_LIMIT else S.queued)

    def _expire(self, claims: list[Claim]) -> int:
        with self.database.transaction() as session:
            past = self.database.now(session) - timedelta(seconds=1)
            session.execute(
                update(Work).where(Work.id.in_([claim.id for claim in claims])).values(lease_expires_at=past)
            )
        return work.expire_leases(self.database, backoff_s=0)


def _finish(database: Database, claim: Claim) -> JobStatus:
    artifact = StoredArtifact("model.onnx", "application/onnx", 1, "00" * 32, claim.object_key("model.onnx"))
    return work.finish_job(database, claim, result=job_result(), artifacts=[artifact])


def _row(session: Any, id: str) -> Any:
    return session.execute(Job.__table__.select().where(Job.id == id)).one()


def test_leases_cancellations_and_ends_in_any_order_follow_the_rules(
    new_house: Callable[[], House], dialect_name: str
) -> None:
    machine = type("Machine", (WorkMachine,), {"new_house": staticmethod(new_house)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            # A PostgreSQL database takes its time to make.
            max_examples=40 if dialect_name == "sqlite" else 8,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        ),
    )
