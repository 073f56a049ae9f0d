"""What a worker says of its job while it holds it, and how the job ends."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store import queue, work
from store.contract import ErrorCode, ErrorInfo, JobProgress, JobStatus, PlanStatus, StageProgress, WorkKind
from store.errors import IllegalTransition, NotFound
from store.jobs import JobRepository
from store.tables import LOCAL_TENANT, Work
from tests.store.house import LEASE_S, UNMET, UNSAFE, House, artifact, job_result, lose, nothing_claimable


def test_a_heartbeat_renews_the_lease_and_shows_progress(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim(lease_s=1.0)
    before = house.job(job)
    stages = [
        StageProgress(name="intake", status="succeeded"),
        StageProgress(name="plan", status="running", step=2, steps=9),
    ]
    progress = JobProgress(fraction=0.25, eta_s=12.5, stages=stages)
    answer = work.heartbeat(house.database, claim, 3600, progress=progress, stage="plan")
    assert not answer.cancel_requested
    after = house.job(job)
    assert (after.stage, after.progress["fraction"], after.progress["stages"][1]["step"]) == ("plan", 0.25, 2)
    assert datetime.fromisoformat(after.progress["updated_at"]) >= before.started_at
    assert after.version > before.version
    assert house.events(job)[2:] == [(3, "job.stage")]
    with house.database.read() as session:
        left = session.get_one(Work, job).lease_expires_at - house.database.now(session)
        assert timedelta(seconds=3500) < left <= timedelta(seconds=3600)
    assert work.expire_leases(house.database) == 0


def test_the_version_changes_exactly_when_the_resource_does(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    versions = [house.job(job).version]
    work.heartbeat(house.database, claim, LEASE_S)
    versions.append(house.job(job).version)
    work.heartbeat(house.database, claim, LEASE_S, stage="plan")
    versions.append(house.job(job).version)
    work.heartbeat(house.database, claim, LEASE_S, stage="plan")
    versions.append(house.job(job).version)
    work.heartbeat(house.database, claim, LEASE_S, progress=JobProgress(fraction=0.1))
    versions.append(house.job(job).version)
    assert [b - a for a, b in itertools.pairwise(versions)] == [0, 1, 0, 1]
    assert [type for _, type in house.events(job)] == ["job.queued", "job.running", "job.stage"]


def test_a_finished_job_has_its_result_artifacts_and_closed_progress(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    stages = [StageProgress(name="deliver", status="running")]
    work.heartbeat(
        house.database, claim, LEASE_S, progress=JobProgress(fraction=0.9, eta_s=1, stages=stages), stage="deliver"
    )
    files = [artifact(claim), artifact(claim, "report.json")]
    assert work.finish_job(house.database, claim, result=job_result(), artifacts=files) is JobStatus.succeeded
    row = house.job(job)
    assert (row.status, row.error, row.stage) == (JobStatus.succeeded, None, "deliver")
    assert row.result == job_result().model_dump(mode="json")
    assert (row.progress["fraction"], row.progress["eta_s"]) == (1.0, None)
    assert row.progress["stages"][0]["status"] == "succeeded"
    assert row.finished_at >= row.started_at
    with house.database.read() as session:
        jobs = JobRepository(session, LOCAL_TENANT)
        assert [stored.name for stored in jobs.artifacts(job)] == ["model.onnx", "report.json"]
        stored = jobs.artifact(job, "model.onnx")
        assert (stored.size, stored.sha256, stored.object_key) == (5, "ef" * 32, claim.object_key("model.onnx"))
    assert house.events(job)[-1][1] == "job.succeeded"
    assert nothing_claimable(house)


def test_a_failed_job_has_its_error_and_keeps_the_best_that_was_reached(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    stages = [StageProgress(name="plan", status="running"), StageProgress(name="apply", status="pending")]
    work.heartbeat(house.database, claim, LEASE_S, progress=JobProgress(fraction=0.3, stages=stages))
    assert work.fail_job(house.database, claim, UNMET, job_result(met=False)) is JobStatus.failed
    row = house.job(job)
    assert ErrorInfo.model_validate(row.error) == UNMET
    assert row.result["met"] is False
    assert (row.progress["fraction"], [s["status"] for s in row.progress["stages"]]) == (0.3, ["failed", "pending"])
    with house.database.read() as session:
        jobs = JobRepository(session, LOCAL_TENANT)
        assert jobs.artifacts(job) == []
        assert jobs.events(job, limit=100).rows[-1].data["error"] == {
            "code": "target_unmet",
            "message": "Reached 41 %.",
        }


@pytest.mark.parametrize("ending", ["finish", "fail", "release", "lose", "expire", "cancel"])
def test_a_job_that_was_asked_to_cancel_ends_cancelled_however_its_worker_leaves(house: House, ending: str) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    house.cancel(job)
    match ending:
        case "finish":
            status = work.finish_job(house.database, claim, result=job_result(), artifacts=[artifact(claim)])
            assert status is JobStatus.cancelled
        case "fail":
            assert work.fail_job(house.database, claim, UNMET, job_result()) is JobStatus.cancelled
        case "release":
            work.release(house.database, claim)
        case "lose":
            work.lose(house.database, claim)
        case "expire":
            lose(house, claim)
        case "cancel":
            work.cancel_job(house.database, claim)
    row = house.job(job)
    assert (row.status, row.result, row.error) == (JobStatus.cancelled, None, None)
    with house.database.read() as session:
        assert JobRepository(session, LOCAL_TENANT).artifacts(job) == []
    assert nothing_claimable(house)


def test_a_worker_cannot_cancel_what_nobody_asked_to_cancel(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    with pytest.raises(IllegalTransition):
        work.cancel_job(house.database, claim)
    assert house.job(job).status is JobStatus.running
    assert not work.heartbeat(house.database, claim, LEASE_S).cancel_requested


def test_a_release_gives_the_job_back_at_once_and_counts_no_loss(house: House) -> None:
    job = house.add_job(house.add_model())
    for attempt in range(1, 6):
        claim = house.claim(id=job)
        assert claim.attempt == attempt
        work.heartbeat(house.database, claim, LEASE_S, progress=JobProgress(fraction=0.5), stage="plan")
        work.release(house.database, claim)
        row = house.job(job)
        assert (row.status, row.stage, row.progress, row.started_at) == (JobStatus.queued, None, None, None)
    work.finish_job(house.database, house.claim(), result=job_result(), artifacts=[])
    assert house.job(job).status is JobStatus.succeeded


def test_a_failing_end_leaves_the_job_running(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    with pytest.raises(IntegrityError):
        work.finish_job(house.database, claim, result=job_result(), artifacts=[artifact(claim), artifact(claim)])
    assert house.job(job).status is JobStatus.running
    assert work.finish_job(house.database, claim, result=job_result(), artifacts=[]) is JobStatus.succeeded


def test_what_is_deleted_while_its_model_is_rejected_is_passed_over(house: House, monkeypatch: pytest.MonkeyPatch):
    model = house.add_model(ready=False)
    gone, waits = house.add_job(model), house.add_job(model)
    gone_plan, waits_too = house.add_plan(model), house.add_plan(model)
    lock = queue.lock

    def lock_what_is_there(session: Session, id: str) -> Work:
        if id in (gone, gone_plan):
            raise NotFound("job", id)
        return lock(session, id)

    monkeypatch.setattr("store.queue.lock", lock_what_is_there)
    work.reject(house.database, house.claim(WorkKind.inspect_model, id=model), UNSAFE)
    assert (house.job(waits).status, house.plan(waits_too).status) == (JobStatus.failed, PlanStatus.failed)


def test_a_rejected_model_fails_exactly_the_jobs_that_wait_for_it(house: House) -> None:
    good, bad = house.add_model(), house.add_model(ready=False)
    waiting = [house.add_job(bad) for _ in range(3)]
    cancelled, unrelated = house.add_job(bad), house.add_job(good)
    house.cancel(cancelled)
    work.reject(house.database, house.claim(WorkKind.inspect_model, id=bad), UNSAFE)
    for id in waiting:
        row = house.job(id)
        error = ErrorInfo.model_validate(row.error)
        assert (row.status, error.code, error.param) == (JobStatus.failed, ErrorCode.unsafe_model, "/model")
        assert bad in error.message and "os.system" in error.message
        assert house.events(id) == [(1, "job.queued"), (2, "job.failed")]
    assert house.job(cancelled).status is JobStatus.cancelled
    assert house.claim().id == unrelated
    assert nothing_claimable(house)
