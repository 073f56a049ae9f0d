"""Work: who may claim what, what a lease allows, and how everything ends."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from store import work
from store.claims import Claim, JobSubject, StoredArtifact
from store.contract import (
    SHORT_WORK,
    ErrorCode,
    ErrorInfo,
    InspectionStatus,
    JobProgress,
    JobStatus,
    PlanStatus,
    StageProgress,
    WorkKind,
)
from store.datasets import DatasetRepository
from store.demand import waiting_jobs
from store.errors import Conflict, DatasetUnlabelled, IllegalTransition, LeaseLost, NotFound
from store.jobs import JobRepository
from store.models import ModelRepository
from store.tables import LOCAL_TENANT, Base, Job, Work, WorkState
from store.transitions import TRANSITIONS, transition
from store.waiting import TROUBLE_LIMIT
from tests.store.house import (
    LEASE_S,
    OTHER_TENANT,
    House,
    inspected_dataset,
    inspected_model,
    job_result,
    plan_outcome,
)

UNMET = ErrorInfo(code=ErrorCode.target_unmet, message="Reached 41 %.", details={"smallest": {"flops": 5}})
UNSAFE = ErrorInfo(code=ErrorCode.unsafe_model, message="It calls os.system.")


def artifact(claim: Claim, name: str = "model.onnx") -> StoredArtifact:
    return StoredArtifact(name, "application/onnx", 5, "ef" * 32, claim.object_key(name))


def nothing_claimable(house: House, **options: Any) -> bool:
    options = {"worker_id": "w", "kinds": set(WorkKind), "queues": {"cpu", "gpu"}, "lease_s": 1.0, **options}
    return work.claim(house.database, **options) is None


def let_the_lease_expire(house: House, id: str) -> None:
    with house.database.transaction() as session:
        past = house.database.now(session) - timedelta(seconds=1)
        session.execute(update(Work).where(Work.id == id).values(lease_expires_at=past))


def lose(house: House, claim: Claim) -> None:
    let_the_lease_expire(house, claim.id)
    assert work.expire_leases(house.database, backoff_s=0) == 1


# --- Transitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("current", "to"), list(itertools.product(JobStatus, JobStatus)))
def test_a_status_changes_as_the_table_says_and_in_no_other_way(
    house: House, current: JobStatus, to: JobStatus
) -> None:
    id = house.add_job(house.add_model())
    with house.database.transaction() as session:
        job = session.get_one(Job, id)
        job.status = current
        now = house.database.now(session)
        if to in TRANSITIONS[current]:
            transition(session, job, to, now=now)
            assert (job.status, job.version, job.last_event_seq) == (to, 2, 2)
            assert (job.finished_at == now) == to.terminal
        else:
            with pytest.raises(IllegalTransition, match=f"from {current.value} to {to.value}"):
                transition(session, job, to, now=now)
            assert (job.status, job.version, job.last_event_seq) == (current, 1, 1)


def test_terminal_statuses_lead_nowhere_and_every_other_one_leads_to_an_end() -> None:
    for status in JobStatus:
        assert bool(TRANSITIONS[status]) != status.terminal
    reachable = {JobStatus.queued}
    for _ in JobStatus:
        reachable |= set().union(*(TRANSITIONS[status] for status in reachable))
    assert reachable == set(JobStatus)


# --- Claim -----------------------------------------------------------------------------------------------------------


def test_a_claim_carries_everything_that_the_runner_needs_as_plain_json(house: House) -> None:
    model, dataset = house.add_model(), house.add_dataset()
    job = house.add_job(model, dataset=dataset, seed=5, limits={"max_runtime_s": 90})
    claim = house.claim(worker_id="host:7")
    assert (claim.id, claim.kind, claim.tenant_id, claim.attempt) == (job, WorkKind.job, LOCAL_TENANT, 1)
    assert (claim.worker_id, claim.max_runtime_s) == ("host:7", 90)
    assert isinstance(claim.subject, JobSubject)
    plain = json.loads(json.dumps(dataclasses.asdict(claim.subject)))
    assert plain["request"]["seed"] == 5
    assert plain["model"]["object_key"] == f"tenants/local/models/{model}/content"
    assert (plain["model"]["architecture_args"], plain["model"]["input_shape"]) == ({"num_classes": 10}, [3, 32, 32])
    assert plain["dataset"]["normalization"] == {"mean": [0.5], "std": [0.25]}
    assert claim.object_key("model.onnx") == f"tenants/local/jobs/{job}/1/model.onnx"
    row = house.job(job)
    assert (row.status, row.attempt, row.version) == (JobStatus.running, 1, 2)
    assert row.started_at >= row.queued_at


def test_a_job_waits_until_its_model_and_its_dataset_are_ready(house: House) -> None:
    model, dataset = house.add_model(ready=False), house.add_dataset(ready=False)
    job = house.add_job(model, dataset=dataset)
    jobs_only = {"kinds": {WorkKind.job}}
    assert nothing_claimable(house, **jobs_only)
    work.finish_model(house.database, house.claim(WorkKind.inspect_model), inspected_model())
    assert nothing_claimable(house, **jobs_only)
    work.finish_dataset(house.database, house.claim(WorkKind.inspect_dataset), inspected_dataset())
    house.claim(WorkKind.job, id=job)
    assert nothing_claimable(house)
    with house.database.read() as session:
        found = DatasetRepository(session, LOCAL_TENANT).get(dataset)
        assert (found.status, found.format, found.classes) == (InspectionStatus.ready, "npz", 10)
        assert (found.splits, found.image_shape) == ({"train": 80, "val": 10, "test": 10}, [1, 8, 8])
        assert (found.mean, found.std, found.normalization) == ([0.3], [0.4], {"mean": [0.5], "std": [0.25]})


def test_each_worker_gets_only_the_kinds_and_devices_that_it_serves(house: House) -> None:
    model = house.add_model()
    gpu_job, cpu_job = house.add_job(model, device="gpu"), house.add_job(model, device="cpu")
    any_job = house.add_job(model, device="auto")
    assert nothing_claimable(house, kinds=SHORT_WORK)
    assert house.claim(queues={"cpu"}).id == cpu_job
    assert house.claim(queues={"cpu"}).id == any_job
    assert nothing_claimable(house, queues={"cpu"})
    assert house.claim(queues={"gpu", "cpu"}).id == gpu_job


def test_work_is_claimed_by_priority_and_then_by_age(house: House) -> None:
    model = house.add_model()
    jobs = [house.add_job(model) for _ in range(4)]
    with house.database.transaction() as session:
        session.execute(update(Work).where(Work.id == jobs[2]).values(priority=-1))
        session.execute(update(Work).where(Work.id == jobs[0]).values(priority=1))
    assert [house.claim().id for _ in jobs] == [jobs[2], jobs[1], jobs[3], jobs[0]]


def test_the_tenant_with_the_fewest_jobs_running_goes_first_whatever_the_age_and_priority(house: House) -> None:
    many = [house.add_job(house.add_model()) for _ in range(3)]
    few = [house.add_job(house.add_model(OTHER_TENANT), OTHER_TENANT) for _ in range(2)]
    with house.database.transaction() as session:
        session.execute(update(Work).where(Work.id.in_(many)).values(priority=-1))
    jobs_only = {"kinds": {WorkKind.job}}
    first, second = house.claim(WorkKind.job), house.claim(WorkKind.job)
    assert [first.id, second.id] == [many[0], few[0]]
    work.finish_job(house.database, second, result=job_result(), artifacts=[])
    assert house.claim(WorkKind.job).id == few[1]
    assert [house.claim(WorkKind.job).id for _ in range(2)] == many[1:]
    assert nothing_claimable(house, **jobs_only)


def test_short_work_that_runs_is_not_held_against_a_tenants_jobs(house: House) -> None:
    model, other = house.add_model(), house.add_model(OTHER_TENANT)
    house.add_plan(model)
    house.claim(WorkKind.plan)
    first, second = house.add_job(model), house.add_job(other, OTHER_TENANT)
    assert [house.claim(WorkKind.job).id for _ in range(2)] == [first, second]


def test_many_claim_at_once_and_each_gets_another_piece_of_work(house: House) -> None:
    model = house.add_model()
    jobs = [house.add_job(model) for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        claims = list(pool.map(lambda number: house.claim(WorkKind.job, worker_id=f"w{number}"), range(12)))
    assert sorted(claim.id for claim in claims) == jobs
    assert nothing_claimable(house, kinds={WorkKind.job})


def test_waiting_jobs_are_counted_by_queue_once_somebody_could_claim_them(house: House) -> None:
    model = house.add_model()
    house.add_job(house.add_model(ready=False))
    for device in ("gpu", "cpu", "auto", "auto"):
        house.add_job(model, device=device)
    house.add_plan(model)
    assert waiting_jobs(house.database, 10) == {"gpu": 1, "cpu": 1, "auto": 2}
    assert sum(waiting_jobs(house.database, 3).values()) == 3


# --- Heartbeat -------------------------------------------------------------------------------------------------------


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


# --- Ends ------------------------------------------------------------------------------------------------------------


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


def test_job_with_a_larger_priority_waits_for_the_others_of_its_tenant_and_for_nobody_who_has_less_running(
    house: House,
):
    mine, other = house.add_model(), house.add_model(OTHER_TENANT)
    patient, usual = house.add_job(mine, priority=9), house.add_job(mine)
    foreign = [house.add_job(other, OTHER_TENANT, priority=100) for _ in "ab"]
    assert [house.claim().id for _ in range(4)] == [usual, foreign[0], patient, foreign[1]]


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


# --- Plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_waits_for_its_model_and_is_short_work(house: House) -> None:
    model = house.add_model(ready=False)
    plan = house.add_plan(model, seed=5)
    assert nothing_claimable(house, kinds={WorkKind.plan})
    work.finish_model(house.database, house.claim(WorkKind.inspect_model), inspected_model())
    claim = house.claim(*SHORT_WORK, id=plan)
    assert (claim.kind, claim.max_runtime_s) == (WorkKind.plan, 300)
    assert (claim.subject.request["seed"], claim.subject.model.id) == (5, model)
    work.finish_plan(house.database, claim, plan_outcome())
    row = house.plan(plan)
    assert (row.status, row.error, row.result["layers"][0]["after"]["out"]) == (PlanStatus.ready, None, 9)
    assert row.finished_at >= row.created_at
    assert nothing_claimable(house)


def test_a_rejected_upload_fails_the_plans_that_wait_for_it_with_its_code(house: House) -> None:
    good = house.add_model()
    model, dataset = house.add_model(ready=False), house.add_dataset(ready=False)
    waits, waits_for_data = house.add_plan(model), house.add_plan(good, dataset=dataset)
    work.reject(house.database, house.claim(WorkKind.inspect_model, id=model), UNSAFE)
    error = house.plan(waits).error
    assert (house.plan(waits).status, error["code"], error["param"]) == (PlanStatus.failed, "unsafe_model", "/model")
    assert model in error["message"]
    assert house.plan(waits_for_data).status is PlanStatus.planning
    work.reject(house.database, house.claim(WorkKind.inspect_dataset, id=dataset), UNSAFE)
    assert house.plan(waits_for_data).error["param"] == "/dataset"
    assert nothing_claimable(house)


def test_a_plan_is_lost_three_times_and_then_fails(house: House) -> None:
    plan = house.add_plan(house.add_model())
    for _ in range(3):
        assert house.plan(plan).status is PlanStatus.planning
        lose(house, house.claim(WorkKind.plan))
    row = house.plan(plan)
    assert (row.status, row.error["code"]) == (PlanStatus.failed, "worker_lost")
    assert "making this plan" in row.error["message"]


@pytest.mark.parametrize("write", ["heartbeat", "release", "lose", "trouble", "finish_plan", "reject"])
def test_a_stale_attempt_of_a_plan_writes_nothing(house: House, write: str) -> None:
    plan = house.add_plan(house.add_model())
    stale = house.claim(WorkKind.plan, id=plan)
    lose(house, stale)
    house.claim(WorkKind.plan, id=plan)
    before = _everything(house)
    with pytest.raises(LeaseLost):
        {**WRITES, **INSPECTION_WRITES, **PLAN_WRITES}[write](house, stale)
    assert _everything(house) == before


def test_a_model_in_a_plan_that_is_being_made_stays_and_takes_its_plans_with_it_later(house: House) -> None:
    model, other = house.add_model(), house.add_model()
    plan, kept = house.add_plan(model), house.add_plan(other)
    with pytest.raises(Conflict, match=plan), house.database.transaction() as session:
        ModelRepository(session, LOCAL_TENANT).delete(model)
    for id in (plan, kept):
        work.finish_plan(house.database, house.claim(WorkKind.plan, id=id), plan_outcome())
    with house.database.transaction() as session:
        ModelRepository(session, LOCAL_TENANT).delete(model)
    with pytest.raises(NotFound):
        house.plan(plan)
    assert house.plan(kept).status is PlanStatus.ready
    with house.database.read() as session:
        assert session.get(Work, plan) is None and session.get(Work, kept) is not None


def test_a_plan_belongs_to_its_tenant(house: House) -> None:
    plan = house.add_plan(house.add_model())
    with pytest.raises(NotFound):
        house.plan(plan, OTHER_TENANT)
    with pytest.raises(NotFound) as missing:
        house.add_plan(house.add_model(), OTHER_TENANT)
    assert missing.value.param == "/model"


def test_labels_are_asked_for_only_where_the_dataset_may_have_them(house: House) -> None:
    model, unlabelled = house.add_model(), house.add_dataset(ready=False)
    floor = {"accuracy": {"max_drop": 0.1}, "recovery": {"label_smoothing": 0.1}}
    waiting = house.add_job(model, dataset=unlabelled, **floor)
    found = inspected_dataset().model_copy(update={"classes": None})
    work.finish_dataset(house.database, house.claim(WorkKind.inspect_dataset, id=unlabelled), found)
    house.claim(WorkKind.job, id=waiting)
    for add in (house.add_job, house.add_plan):
        with pytest.raises(DatasetUnlabelled, match="accuracy and recovery") as refused:
            add(model, dataset=unlabelled, **floor)
        assert refused.value.fields == ("accuracy", "recovery")
        add(model, dataset=unlabelled, recovery={"epochs": 0, "distill": False})
        add(model, dataset=unlabelled, recovery={"epochs": 3})


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


# --- Fencing ---------------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[House, Claim], Any]] = {
    "heartbeat": lambda h, c: work.heartbeat(h.database, c, 60, progress=JobProgress(fraction=1), stage="plan"),
    "finish_job": lambda h, c: work.finish_job(h.database, c, result=job_result(), artifacts=[artifact(c)]),
    "fail_job": lambda h, c: work.fail_job(h.database, c, UNMET),
    "cancel_job": lambda h, c: work.cancel_job(h.database, c),
    "release": lambda h, c: work.release(h.database, c),
    "lose": lambda h, c: work.lose(h.database, c),
}
PLAN_WRITES: dict[str, Callable[[House, Claim], Any]] = {
    "trouble": lambda h, c: work.trouble(h.database, c, delay_s=0, what="OSError"),
    "finish_plan": lambda h, c: work.finish_plan(h.database, c, plan_outcome()),
}
INSPECTION_WRITES: dict[str, Callable[[House, Claim], Any]] = {
    "heartbeat": WRITES["heartbeat"],
    "release": WRITES["release"],
    "finish_model": lambda h, c: work.finish_model(h.database, c, inspected_model()),
    "reject": lambda h, c: work.reject(h.database, c, UNSAFE),
}


def _everything(house: House) -> dict[str, list[Any]]:
    with house.database.read() as session:
        return {name: session.execute(table.select()).all() for name, table in Base.metadata.tables.items()}


@pytest.mark.parametrize("now_held_by", ["nobody", "another worker", "the same worker", "the end"])
@pytest.mark.parametrize("write", WRITES)
def test_a_stale_attempt_of_a_job_writes_nothing(house: House, write: str, now_held_by: str) -> None:
    house.add_job(house.add_model())
    stale = house.claim(worker_id="first")
    lose(house, stale)
    if now_held_by == "another worker":
        house.claim(worker_id="second")
    elif now_held_by == "the same worker":
        house.claim(worker_id="first")
    elif now_held_by == "the end":
        work.finish_job(house.database, house.claim(worker_id="second"), result=job_result(), artifacts=[])
    before = _everything(house)
    with pytest.raises(LeaseLost) as lost:
        WRITES[write](house, stale)
    assert (lost.value.id, lost.value.attempt, lost.value.worker_id) == (stale.id, 1, "first")
    assert _everything(house) == before


@pytest.mark.parametrize("write", INSPECTION_WRITES)
def test_a_stale_attempt_of_an_inspection_writes_nothing(house: House, write: str) -> None:
    model = house.add_model(ready=False)
    house.add_job(model)
    stale = house.claim(worker_id="first")
    lose(house, stale)
    house.claim(worker_id="second", id=model)
    before = _everything(house)
    with pytest.raises(LeaseLost):
        INSPECTION_WRITES[write](house, stale)
    assert _everything(house) == before


def test_a_failing_end_leaves_the_job_running(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    with pytest.raises(IntegrityError):
        work.finish_job(house.database, claim, result=job_result(), artifacts=[artifact(claim), artifact(claim)])
    assert house.job(job).status is JobStatus.running
    assert work.finish_job(house.database, claim, result=job_result(), artifacts=[]) is JobStatus.succeeded


# --- Losses ----------------------------------------------------------------------------------------------------------


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


def test_a_restarted_process_takes_back_at_once_what_its_predecessor_held(house: House) -> None:
    model = house.add_model()
    jobs = [house.add_job(model) for _ in range(4)]
    inspected = house.add_model(ready=False)
    owners = ["data_1:job", "data_1:job", "data_10:job", "Data_1:job"]
    claims = [house.claim(WorkKind.job, worker_id=owner) for owner in owners]
    house.claim(WorkKind.inspect_model, worker_id="data_1:short")
    assert work.release_owner(house.database, "data_1:") == 3
    assert [house.job(id).status for id in jobs] == [JobStatus.queued] * 2 + [JobStatus.running] * 2
    for claim in claims[:2]:
        with pytest.raises(LeaseLost):
            work.heartbeat(house.database, claim, LEASE_S)
    for claim in claims[2:]:
        work.heartbeat(house.database, claim, LEASE_S)
    assert {house.claim().id for _ in range(3)} == {*jobs[:2], inspected}
    with pytest.raises(ValueError, match="empty prefix"):
        work.release_owner(house.database, "")
