"""What is kept for a while only goes when its time is over, never while it is used, and once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from store import gpu_time, work
from store.claims import Claim, StoredArtifact
from store.contract import WorkKind
from store.errors import NotFound
from store.objects import LocalObjects
from store.retention import Retention, expire
from store.tables import Artifact, Dataset, GpuRun, Job, Model, Plan
from tests.store.house import House, job_result, plan_outcome

LONG_AGO = timedelta(days=10)


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects")


def put(objects: LocalObjects, key: str) -> str:
    with objects.open_writer(key) as writer:
        writer.write(b"content")
        writer.commit()
    return key


def age(house: House, table: type, id: str, column: str) -> None:
    with house.database.transaction() as session:
        then = house.database.now(session) - LONG_AGO
        session.execute(update(table).where(table.id == id).values({column: then}))


def finished_job(house: House, objects: LocalObjects, model: str, **fields: Any) -> str:
    house.add_job(model, **fields)
    claim: Claim = house.claim(WorkKind.job)
    key = put(objects, claim.object_key("model.onnx"))
    artifact = StoredArtifact("model.onnx", "application/onnx", 7, "ef" * 32, key)
    work.finish_job(house.database, claim, result=job_result(), artifacts=[artifact])
    return claim.id


def test_artifacts_go_and_their_job_stays_and_says_so(house: House, objects: LocalObjects) -> None:
    model = house.add_model()
    old, new = finished_job(house, objects, model), finished_job(house, objects, model)
    age(house, Job, old, "finished_at")
    assert expire(house.database, objects, Retention(artifacts_days=5)) == 1
    assert expire(house.database, objects, Retention(artifacts_days=5)) == 0
    assert house.job(old).expires_at is not None and house.job(new).expires_at is None
    assert house.events(old)[-1][1] == "job.expired"
    with house.database.read() as session:
        assert session.scalars(select(Artifact.job_id)).all() == [new]
    assert [key.split("/")[3] for key in objects.keys(older_than_s=-60)] == [new]


def test_a_model_goes_when_neither_its_upload_nor_a_job_on_it_is_recent(house: House, objects: LocalObjects) -> None:
    unused, used, live = (house.add_model() for _ in range(3))
    for model in (unused, used, live):
        age(house, Model, model, "created_at")
    finished_job(house, objects, used)
    age(house, Job, job := house.add_job(live), "created_at")
    assert expire(house.database, objects, Retention(models_days=5)) == 1
    with house.database.read() as session:
        assert sorted(session.scalars(select(Model.id))) == sorted([used, live])
    assert house.job(job).status == "queued"


def test_datasets_and_plans_go_when_their_time_is_over(house: House, objects: LocalObjects) -> None:
    model, dataset = house.add_model(), house.add_dataset()
    plan = house.add_plan(model)
    work.finish_plan(house.database, house.claim(WorkKind.plan), plan_outcome())
    age(house, Dataset, dataset, "created_at")
    age(house, Plan, plan, "finished_at")
    assert expire(house.database, objects, Retention()) == 0
    assert expire(house.database, objects, Retention(datasets_days=5, plans_days=5)) == 2
    with pytest.raises(NotFound):
        house.plan(plan)
    with pytest.raises(NotFound):
        house.dataset(dataset)


def test_sweepers_at_once_delete_each_thing_once(house: House, objects: LocalObjects) -> None:
    models = [house.add_model() for _ in range(6)]
    for model in models:
        age(house, Job, finished_job(house, objects, model), "finished_at")
        age(house, Model, model, "created_at")
    with house.database.transaction() as session:
        session.execute(update(Job).values(created_at=house.database.now(session) - LONG_AGO))
    retention = Retention(artifacts_days=5, models_days=5)
    with ThreadPoolExecutor(3) as pool:
        removed = list(pool.map(lambda _: expire(house.database, objects, retention), range(3)))
    assert sum(removed) == 12
    with house.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Model)) == 0
    assert list(objects.keys(older_than_s=-60)) == []


def test_what_was_noted_of_gpus_is_kept_for_more_than_a_year_and_then_forgotten(
    house: House, objects: LocalObjects
) -> None:
    model = house.add_model()
    old, recent = (house.add_job(model, device="gpu") for _ in range(2))
    for job, days in ((old, gpu_time.KEPT_DAYS + 1), (recent, gpu_time.KEPT_DAYS - 1)):
        work.release(house.database, house.claim(id=job, queues={"gpu"}))
        house.cancel(job)
        with house.database.transaction() as session:
            then = house.database.now(session) - timedelta(days=days)
            session.execute(update(GpuRun).where(GpuRun.job_id == job).values(ended_at=then))
    assert expire(house.database, objects, Retention()) == 1
    assert expire(house.database, objects, Retention()) == 0
    with house.database.read() as session:
        assert session.scalars(select(GpuRun.job_id)).all() == [recent]
