"""Objects without a row are removed once they are old enough, and no others."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from store import work
from store.claims import StoredArtifact
from store.contract import WorkKind
from store.identifiers import new_id
from store.jobs import JobRepository
from store.layout import artifact_key, dataset_key, model_key, owner_of
from store.objects import LocalObjects
from store.orphans import remove_orphans
from store.tables import LOCAL_TENANT
from tests.store.house import House, job_result


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects")


def put(objects: LocalObjects, key: str, *, age_s: float = 7200) -> str:
    with objects.open_writer(key) as writer:
        writer.write(b"x")
        writer.commit()
    moment = time.time() - age_s
    os.utime(objects._path(key), (moment, moment))
    return key


def stored(objects: LocalObjects) -> set[str]:
    return set(objects.keys(older_than_s=-60))


def test_uploads_without_a_row_go_once_they_are_old_and_others_stay(house: House, objects: LocalObjects) -> None:
    model, dataset = house.add_model(), house.add_dataset()
    kept = {put(objects, model_key(LOCAL_TENANT, model)), put(objects, dataset_key(LOCAL_TENANT, dataset))}
    kept.add(put(objects, model_key(LOCAL_TENANT, new_id("mdl")), age_s=0))
    kept |= {
        put(objects, "probes/key"),
        put(objects, "tenants/local/models/mdl_1/content/extra"),
        put(objects, "elsewhere"),
    }
    for tenant in (LOCAL_TENANT, "gone"):
        put(objects, model_key(tenant, new_id("mdl")))
        put(objects, dataset_key(tenant, new_id("ds")))
    assert remove_orphans(house.database, objects, older_than_s=3600) == 4
    assert stored(objects) == kept
    assert remove_orphans(house.database, objects, older_than_s=3600) == 0


def test_artifacts_of_running_and_finished_jobs_stay_and_what_else_attempts_left_goes(
    house: House, objects: LocalObjects
) -> None:
    model = house.add_model()
    queued, running, finished = (house.add_job(model) for _ in range(3))
    kept = {put(objects, artifact_key(LOCAL_TENANT, queued, 1, "model.onnx"))}
    work.release(house.database, house.claim(WorkKind.job, id=queued))
    lost = house.claim(WorkKind.job, id=queued)
    claim = house.claim(WorkKind.job, id=running)
    kept.add(put(objects, claim.object_key("model.onnx")))
    done = house.claim(WorkKind.job, id=finished)
    kept.add(put(objects, done.object_key("model.onnx")))
    put(objects, artifact_key(LOCAL_TENANT, finished, 7, "model.onnx"))
    put(objects, done.object_key("forgotten.bin"))
    put(objects, artifact_key(LOCAL_TENANT, new_id("job"), 1, "model.onnx"))
    files = [StoredArtifact("model.onnx", "application/onnx", 1, "ab" * 32, done.object_key("model.onnx"))]
    work.finish_job(house.database, done, result=job_result(), artifacts=files)
    assert remove_orphans(house.database, objects, older_than_s=3600) == 3
    assert stored(objects) == kept
    work.lose(house.database, lost)
    with house.database.transaction() as session:
        JobRepository(session, LOCAL_TENANT).delete(finished)
    assert remove_orphans(house.database, objects, older_than_s=3600) == 1


def test_many_sweepers_at_once_remove_each_orphan_and_nothing_else(house: House, objects: LocalObjects) -> None:
    kept = {put(objects, model_key(LOCAL_TENANT, house.add_model())) for _ in range(5)}
    for _ in range(60):
        put(objects, model_key(LOCAL_TENANT, new_id("mdl")))
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(remove_orphans, house.database, objects, older_than_s=3600) for _ in range(4)]
        assert sum(run.result() for run in runs) >= 60
    assert stored(objects) == kept


def test_age_of_an_object_counts_from_its_commit_and_not_from_its_last_byte(objects: LocalObjects) -> None:
    with objects.open_writer("a/slow") as writer:
        writer.write(b"x")
        os.utime(writer._path, (0, 0))
        writer.commit()
    assert list(objects.keys(older_than_s=60)) == []


def test_every_key_that_the_layout_makes_has_its_owner() -> None:
    for make, kind in ((model_key, "models"), (dataset_key, "datasets")):
        assert owner_of(make("local", "id_1")) == (kind, "id_1")
    assert owner_of(artifact_key("local", "job_1", 2, "model.onnx")) == ("jobs", "job_1")
