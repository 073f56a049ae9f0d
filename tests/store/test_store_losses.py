"""Work whose worker is lost, in trouble or too slow: who gets it next, and when it ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from store import work
from store.contract import ErrorCode, ErrorInfo, InspectionStatus, JobStatus, WorkKind
from store.datasets import DatasetRepository
from store.errors import LeaseLost
from store.models import ModelRepository
from store.tables import LOCAL_TENANT, Work, WorkState
from store.waiting import TROUBLE_LIMIT
from tests.store.house import House, artifact, job_result, let_the_lease_expire, lose, nothing_claimable


def test_trouble_of_a_worker_keeps_the_work_from_everyone_for_a_while_and_is_no_loss(house: House) -> None:
    job = house.add_job(house.add_model())
    work.trouble(house.database, house.claim(), delay_s=600, what="No space left on device")
    with house.database.read() as session:
        row = session.get_one(Work, job)
        assert (row.state, row.losses, row.troubles, row.lease_owner) == (WorkState.queued, 0, 1, None)
    assert house.job(job).status is JobStatus.queued
    assert nothing_claimable(house)
    with house.database.transaction() as session:
        session.execute(update(Work).values(available_at=house.database.now(session)))
    claim = house.claim()
    assert (claim.id, claim.troubles) == (job, 1)


def test_trouble_without_end_ends_the_work_with_words_about_it(house: House) -> None:
    model = house.add_model()
    job, plan, dataset = house.add_job(model), house.add_plan(model), house.add_dataset(ready=False)
    for id in (job, plan, dataset):
        for attempt in range(1, TROUBLE_LIMIT + 1):
            claim = house.claim(*{claim_kind(id)}, id=id)
            assert (claim.attempt, claim.troubles) == (attempt, attempt - 1)
            work.trouble(house.database, claim, delay_s=0, what="No space left on device")
    assert nothing_claimable(house)
    for error in (house.job(job).error, house.plan(plan).error, house.dataset(dataset).error):
        assert (error["code"], error["retryable"]) == ("internal", True)
        assert f"{TROUBLE_LIMIT} times" in error["message"] and "No space left on device" in error["message"]


def claim_kind(id: str) -> WorkKind:
    return {"job": WorkKind.job, "pln": WorkKind.plan, "ds": WorkKind.inspect_dataset}[id.split("_")[0]]


def test_an_expired_lease_puts_the_job_back_and_the_third_one_ends_it(house: House) -> None:
    job = house.add_job(house.add_model())
    for attempt in (1, 2):
        lose(house, house.claim(id=job))
        row = house.job(job)
        assert (row.status, row.attempt, row.started_at, row.error) == (JobStatus.queued, attempt, None, None)
    lose(house, house.claim(id=job))
    row = house.job(job)
    error = ErrorInfo.model_validate(row.error)
    assert (row.status, row.attempt) == (JobStatus.failed, 3)
    assert (error.code, error.retryable) == (ErrorCode.worker_lost, True)
    assert "3 workers" in error.message
    types = [type for _, type in house.events(job)]
    assert types == ["job.queued", *["job.running", "job.queued"] * 2, "job.running", "job.failed"]
    assert nothing_claimable(house)


def test_a_worker_that_reports_a_dead_runner_counts_a_loss_and_the_job_waits_a_little(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    work.lose(house.database, claim)
    assert house.job(job).status is JobStatus.queued
    assert nothing_claimable(house)
    with house.database.read() as session:
        assert session.get_one(Work, job).losses == 1


def test_a_lease_that_still_runs_is_left_alone(house: House) -> None:
    job = house.add_job(house.add_model())
    house.claim()
    assert work.expire_leases(house.database) == 0
    assert house.job(job).status is JobStatus.running


def test_after_a_loss_the_job_waits_a_little_longer_each_time(house: House) -> None:
    job = house.add_job(house.add_model())
    for losses in (1, 2):
        house.claim(id=job)
        let_the_lease_expire(house, job)
        assert work.expire_leases(house.database, backoff_s=100) == 1
        assert nothing_claimable(house)
        with house.database.transaction() as session:
            row = session.get_one(Work, job)
            wait = row.available_at - house.database.now(session)
            assert timedelta(seconds=100 * losses - 5) < wait <= timedelta(seconds=100 * losses)
            row.available_at = datetime.now(UTC) - timedelta(days=1)
    house.claim(id=job)


def test_work_that_hangs_beyond_its_time_is_ended_although_its_lease_is_alive(house: House) -> None:
    claim = house.claim(id=house.add_job(house.add_model(), limits={"max_runtime_s": 60}))
    assert work.end_overdue(house.database) == 0
    with house.database.transaction() as session:
        row = session.get_one(Work, claim.id)
        assert row.overdue_at - house.database.now(session) > timedelta(seconds=60)
        row.overdue_at = house.database.now(session) - timedelta(seconds=1)
    assert work.end_overdue(house.database) == 1
    assert work.end_overdue(house.database) == 0
    job = house.job(claim.id)
    assert (job.status, job.error["code"]) == (JobStatus.failed, "timeout")
    assert "60 s" in job.error["message"]
    with pytest.raises(LeaseLost):
        work.finish_job(house.database, claim, result=job_result(), artifacts=[artifact(claim)])


def test_two_sweepers_at_once_count_each_loss_once(house: House) -> None:
    model = house.add_model()
    jobs = [house.add_job(model) for _ in range(20)]
    for _ in jobs:
        house.claim(WorkKind.job)
    with house.database.transaction() as session:
        past = house.database.now(session) - timedelta(seconds=1)
        session.execute(update(Work).values(lease_expires_at=past).where(Work.state == WorkState.running))
    with ThreadPoolExecutor(4) as pool:
        swept = list(pool.map(lambda _: work.expire_leases(house.database), range(4)))
    assert sum(swept) == len(jobs)
    with house.database.read() as session:
        assert {session.get_one(Work, id).losses for id in jobs} == {1}


@pytest.mark.parametrize("which", ["model", "dataset"])
def test_an_inspection_that_loses_three_workers_rejects_the_upload_and_fails_its_jobs(house: House, which: str) -> None:
    ready = house.add_model()
    upload = house.add_model(ready=False) if which == "model" else house.add_dataset(ready=False)
    job = house.add_job(upload) if which == "model" else house.add_job(ready, dataset=upload)
    for _ in range(3):
        assert house.job(job).status is JobStatus.queued
        lose(house, house.claim(id=upload))
    with house.database.read() as session:
        repository = ModelRepository if which == "model" else DatasetRepository
        row = repository(session, LOCAL_TENANT).get(upload)
        assert (row.status, row.error["code"]) == (InspectionStatus.rejected, "worker_lost")
    failed = house.job(job)
    assert (failed.status, failed.error["code"], failed.error["param"]) == (
        JobStatus.failed,
        "worker_lost",
        f"/{which}",
    )
