"""Who may claim what, in which order, and what a claim carries."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from store import work
from store.claims import JobSubject
from store.contract import SHORT_WORK, InspectionStatus, JobStatus, WorkKind
from store.datasets import DatasetRepository
from store.demand import waiting_jobs
from store.errors import DatasetUnlabelled
from store.tables import LOCAL_TENANT, Work
from tests.store.house import OTHER_TENANT, House, inspected_dataset, inspected_model, job_result, nothing_claimable


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


def test_job_with_a_larger_priority_waits_for_the_others_of_its_tenant_and_for_nobody_who_has_less_running(
    house: House,
):
    mine, other = house.add_model(), house.add_model(OTHER_TENANT)
    patient, usual = house.add_job(mine, priority=9), house.add_job(mine)
    foreign = [house.add_job(other, OTHER_TENANT, priority=100) for _ in "ab"]
    assert [house.claim().id for _ in range(4)] == [usual, foreign[0], patient, foreign[1]]


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
