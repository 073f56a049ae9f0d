"""Repositories: what one tenant puts in, it alone finds, lists, changes and deletes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import work
from store.contract import ErrorCode, ErrorInfo, InspectionStatus, JobRequest, JobStatus, WorkKind
from store.datasets import DatasetRepository
from store.errors import Conflict, DatasetRejected, LeaseLost, ModelRejected, NotFound
from store.identifiers import MonotonicUlids, new_id
from store.jobs import JobRepository
from store.layout import dataset_key, job_prefix, model_key
from store.models import ModelRepository
from store.tables import LOCAL_TENANT, Artifact, Base, JobEvent, JobLabel, Work
from tests.store.house import OTHER_TENANT, House, inspected_model, job_request, job_result

UNSAFE = ErrorInfo(code=ErrorCode.unsafe_model, message="It calls os.system.", param="/file", details={"offset": 7})


# --- Tenants ---------------------------------------------------------------------------------------------------------

JOB_ACTIONS: dict[str, Callable[[JobRepository, str], Any]] = {
    "get": lambda jobs, id: jobs.get(id),
    "request_cancel": lambda jobs, id: jobs.request_cancel(id),
    "delete": lambda jobs, id: jobs.delete(id),
    "events": lambda jobs, id: jobs.events(id),
    "artifacts": lambda jobs, id: jobs.artifacts(id),
    "artifact": lambda jobs, id: jobs.artifact(id, "model.onnx"),
}


@pytest.mark.parametrize("action", JOB_ACTIONS)
def test_a_foreign_job_is_not_found(house: House, action: str) -> None:
    job = house.add_job(house.add_model())
    with house.database.transaction() as session:
        with pytest.raises(NotFound) as foreign:
            JOB_ACTIONS[action](JobRepository(session, OTHER_TENANT), job)
        unknown_id = new_id("job")
        with pytest.raises(NotFound) as unknown:
            JOB_ACTIONS[action](JobRepository(session, OTHER_TENANT), unknown_id)
    assert str(foreign.value) == str(unknown.value).replace(unknown_id, job)
    assert house.job(job).status is JobStatus.queued


@pytest.mark.parametrize("repository", [ModelRepository, DatasetRepository])
def test_a_foreign_upload_is_not_found(house: House, repository: type[ModelRepository | DatasetRepository]) -> None:
    id = house.add_model() if repository is ModelRepository else house.add_dataset()
    with house.database.transaction() as session:
        foreign = repository(session, OTHER_TENANT)
        for action in (foreign.get, foreign.delete):
            with pytest.raises(NotFound):
                action(id)
        assert foreign.list().rows == []
        assert [row.id for row in repository(session, LOCAL_TENANT).list().rows] == [id]


def test_a_job_cannot_use_foreign_uploads_or_retry_a_foreign_job(house: House) -> None:
    own, foreign = house.add_model(), house.add_model(OTHER_TENANT)
    foreign_dataset = house.add_dataset(OTHER_TENANT)
    foreign_job = house.add_job(foreign, OTHER_TENANT)
    with house.database.transaction() as session:
        jobs = JobRepository(session, LOCAL_TENANT)
        with pytest.raises(NotFound) as refused:
            jobs.create(job_request(foreign))
        assert refused.value.param == "/model"
        with pytest.raises(NotFound) as refused:
            jobs.create(job_request(own, dataset=foreign_dataset))
        assert refused.value.param == "/dataset"
        with pytest.raises(NotFound):
            jobs.create(job_request(own), retry_of=foreign_job)
        assert jobs.list().rows == []


# --- Lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_walking_a_list_by_its_cursor_meets_every_row_once_in_order(house: House, order: Any, limit: int) -> None:
    ids = [house.add_model(ready=False) for _ in range(7)]
    walked, after = [], None
    with house.database.read() as session:
        while True:
            page = ModelRepository(session, LOCAL_TENANT).list(limit, after, order)
            walked += [row.id for row in page.rows]
            assert page.has_more == (len(walked) < 7) == (page.next is not None)
            if page.next is None:
                break
            after = page.next
    assert walked == (ids if order == "asc" else ids[::-1])


@pytest.mark.parametrize(("asked", "given"), [(-5, 1), (0, 1), (1, 1), (100, 100), (10_000, 100)])
def test_limits_are_coerced_to_1_to_100(house: House, asked: int, given: int) -> None:
    model = house.add_model()
    with house.database.transaction() as session:
        for _ in range(101):
            JobRepository(session, LOCAL_TENANT).create(job_request(model))
    with house.database.read() as session:
        assert len(JobRepository(session, LOCAL_TENANT).list(limit=asked).rows) == given


def test_jobs_are_filtered_by_status_and_by_all_labels(house: House) -> None:
    model = house.add_model()
    labels = [{"team": "a", "sha": "1"}, {"team": "a", "sha": "2"}, {"team": "b", "sha": "1"}, {}]
    jobs = [house.add_job(model, labels=each) for each in labels]
    foreign = house.add_job(house.add_model(OTHER_TENANT), OTHER_TENANT, labels={"team": "a", "sha": "1"})
    house.cancel(jobs[1])

    def found(tenant_id: str = LOCAL_TENANT, **filters: Any) -> list[str]:
        with house.database.read() as session:
            return [row.id for row in JobRepository(session, tenant_id).list(order="asc", **filters).rows]

    assert found() == jobs
    assert found(labels={"team": "a"}) == jobs[:2]
    assert found(labels={"team": "a", "sha": "1"}) == jobs[:1]
    assert found(labels={"team": "c"}) == []
    assert found(labels={"team": "a"}, status=JobStatus.queued) == jobs[:1]
    assert found(status=JobStatus.cancelled) == jobs[1:2]
    assert found(status=[JobStatus.cancelled, JobStatus.queued]) == jobs
    assert found(OTHER_TENANT, labels={"team": "a"}) == [foreign]
    assert house.job(jobs[0]).labels == labels[0]


def test_events_are_paged_by_their_number(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    for number in range(5):
        work.heartbeat(house.database, claim, 60, stage=f"stage{number}")
    with house.database.read() as session:
        jobs = JobRepository(session, LOCAL_TENANT)
        page = jobs.events(job, limit=4)
        assert ([event.seq for event in page.rows], page.has_more, page.next) == ([1, 2, 3, 4], True, 4)
        page = jobs.events(job, after=4, limit=4)
        assert ([event.data for event in page.rows], page.has_more) == (
            [{"stage": f"stage{n}"} for n in (2, 3, 4)],
            False,
        )
        assert [event.seq for event in jobs.events(job, limit=2, order="desc").rows] == [7, 6]


# --- Create ----------------------------------------------------------------------------------------------------------


def test_a_new_job_is_queued_with_its_request_labels_and_first_event(house: House) -> None:
    model, dataset = house.add_model(), house.add_dataset()
    request = job_request(
        model, name="mine", dataset=dataset, labels={"k": "v"}, limits={"max_runtime_s": 77}, device="gpu"
    )
    with house.database.transaction() as session:
        id = JobRepository(session, LOCAL_TENANT).create(request).id
    job = house.job(id)
    assert (job.status, job.name, job.model_id, job.dataset_id) == (JobStatus.queued, "mine", model, dataset)
    assert JobRequest.model_validate(job.request) == request
    assert (job.attempt, job.version, job.stage, job.progress, job.result, job.error) == (0, 1, None, None, None, None)
    assert job.created_at == job.queued_at
    assert (job.started_at, job.finished_at, job.cancel_requested_at, job.retry_of) == (None, None, None, None)
    assert house.events(id) == [(1, "job.queued")]
    with house.database.read() as session:
        row = session.get_one(Work, id)
        assert (row.queue, row.max_runtime_s, row.kind) == ("gpu", 77, WorkKind.job)


def test_a_retry_is_a_new_job_that_names_the_old_one(house: House) -> None:
    model = house.add_model()
    old = house.add_job(model, seed=3)
    with house.database.transaction() as session:
        jobs = JobRepository(session, LOCAL_TENANT)
        new = jobs.create(JobRequest.model_validate(jobs.get(old).request), retry_of=old)
        assert (new.retry_of, new.id != old, new.request) == (old, True, jobs.get(old).request)


def test_a_rejected_upload_is_refused_at_creation_with_its_error(house: House) -> None:
    ready = house.add_model()
    bad_model = house.add_model(ready=False)
    work.reject(house.database, house.claim(id=bad_model), UNSAFE)
    bad_dataset = house.add_dataset(ready=False)
    bad_images = ErrorInfo(code=ErrorCode.dataset_invalid, message="Two classes have no image.")
    work.reject(house.database, house.claim(id=bad_dataset), bad_images)
    with house.database.transaction() as session:
        jobs = JobRepository(session, LOCAL_TENANT)
        with pytest.raises(ModelRejected, match=r"unsafe_model.*os\.system") as refused:
            jobs.create(job_request(bad_model))
        assert (refused.value.error, refused.value.param, refused.value.id) == (UNSAFE, "/model", bad_model)
        with pytest.raises(DatasetRejected) as refused_dataset:
            jobs.create(job_request(ready, dataset=bad_dataset))
        assert refused_dataset.value.error.code is ErrorCode.dataset_invalid
        assert session.scalar(select(func.count()).select_from(Work).where(Work.kind == WorkKind.job)) == 0


# --- Delete ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["model", "dataset"])
def test_an_upload_in_use_is_kept_until_its_jobs_have_ended(house: House, which: str) -> None:
    model, dataset = house.add_model(), house.add_dataset()
    job = house.add_job(model, dataset=dataset)

    def delete(session: Session) -> list[str]:
        if which == "model":
            return ModelRepository(session, LOCAL_TENANT).delete(model)
        return DatasetRepository(session, LOCAL_TENANT).delete(dataset)

    with house.database.transaction() as session, pytest.raises(Conflict, match=job) as refused:
        delete(session)
    assert refused.value.code == "in_use"
    house.cancel(job)
    with house.database.transaction() as session:
        key = model_key(LOCAL_TENANT, model) if which == "model" else dataset_key(LOCAL_TENANT, dataset)
        assert delete(session) == [key]
    with house.database.read() as session, pytest.raises(NotFound):
        ModelRepository(session, LOCAL_TENANT).get(model)
        DatasetRepository(session, LOCAL_TENANT).get(dataset)
    assert house.job(job).model_id == model


def test_deleting_an_upload_fences_its_inspection(house: House) -> None:
    model = house.add_model(ready=False)
    claim = house.claim(id=model)
    with house.database.transaction() as session:
        ModelRepository(session, LOCAL_TENANT).delete(model)
    with pytest.raises(LeaseLost):
        work.reject(house.database, claim, UNSAFE)


def test_a_job_is_deleted_with_everything_that_hangs_on_it_once_it_has_ended(house: House) -> None:
    job = house.add_job(house.add_model(), labels={"a": "b"})
    claim = house.claim()
    with house.database.transaction() as session, pytest.raises(Conflict, match="running") as refused:
        JobRepository(session, LOCAL_TENANT).delete(job)
    assert refused.value.code == "job_not_terminal"
    artifact = work.StoredArtifact("model.onnx", "application/onnx", 5, "ef" * 32, claim.object_key("model.onnx"))
    work.finish_job(house.database, claim, result=job_result(), artifacts=[artifact])
    with house.database.transaction() as session:
        assert JobRepository(session, LOCAL_TENANT).delete(job) == [job_prefix(LOCAL_TENANT, job)]
    assert artifact.object_key.startswith(job_prefix(LOCAL_TENANT, job) + "/")
    with house.database.read() as session:
        for table in (Artifact, JobEvent, JobLabel):
            assert session.scalar(select(func.count()).select_from(table)) == 0
        assert session.get(Work, job) is None


# --- Cancel ----------------------------------------------------------------------------------------------------------


def test_cancelling_a_queued_job_ends_it_at_once_and_again_changes_nothing(house: House) -> None:
    job = house.add_job(house.add_model())
    first, second = house.cancel(job), house.cancel(job)
    assert first.status is second.status is JobStatus.cancelled
    assert first.version == second.version == 2
    assert first.cancel_requested_at == first.finished_at is not None
    assert house.events(job) == [(1, "job.queued"), (2, "job.cancelled")]
    assert work.claim(house.database, worker_id="w", kinds=set(WorkKind), queues={"cpu"}, lease_s=9) is None


def test_cancelling_a_running_job_asks_its_worker_and_again_changes_nothing(house: House) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    assert not work.heartbeat(house.database, claim, 60).cancel_requested
    first, second = house.cancel(job), house.cancel(job)
    assert first.status is second.status is JobStatus.cancelling
    assert first.version == second.version
    assert first.cancel_requested_at == second.cancel_requested_at is not None
    assert work.heartbeat(house.database, claim, 60).cancel_requested
    work.cancel_job(house.database, claim)
    assert house.job(job).status is JobStatus.cancelled
    assert house.cancel(job).status is JobStatus.cancelled


@pytest.mark.parametrize("ending", ["succeeded", "failed"])
def test_an_ended_job_is_not_cancellable(house: House, ending: str) -> None:
    job = house.add_job(house.add_model())
    claim = house.claim()
    if ending == "succeeded":
        work.finish_job(house.database, claim, result=job_result(), artifacts=[])
    else:
        work.fail_job(house.database, claim, ErrorInfo(code=ErrorCode.internal, message="?"))
    with pytest.raises(Conflict) as refused:
        house.cancel(job)
    assert refused.value.code == "job_not_cancellable"
    assert house.job(job).status == ending


# --- Ids -------------------------------------------------------------------------------------------------------------


def test_ids_strictly_increase_even_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5_000_000_000, 5_000_000_000, 3_000_000_000, 5_000_999_999, 6_000_000_000] * 200)
    monkeypatch.setattr("time.time_ns", lambda: next(clock))
    source = MonotonicUlids()
    made = [source.next() for _ in range(1000)]
    assert made == sorted(set(made))
    assert all(len(id) == 26 for id in made)


def test_every_row_of_a_tenant_says_so_or_hangs_on_one_that_does() -> None:
    of_the_installation = {"tenants", "workers", "tallies"}
    for name, table in Base.metadata.tables.items():
        parents = {key.column.table.name for key in table.foreign_keys}
        assert (
            name in of_the_installation or "tenant_id" in table.columns or parents in ({"jobs"}, {"webhook_endpoints"})
        ), name
        assert "tenant_id" not in table.columns or not table.columns["tenant_id"].nullable


def test_a_model_under_inspection_shows_what_the_user_said_and_then_what_was_found(house: House) -> None:
    id = house.add_model(ready=False)
    with house.database.read() as session:
        model = ModelRepository(session, LOCAL_TENANT).get(id)
        assert (model.status, model.format, model.profile) == (InspectionStatus.inspecting, None, None)
        assert (model.architecture, model.architecture_args, model.input_shape) == ("cifar_resnet20", {}, None)
    house_claim = house.claim(id=id)
    work.finish_model(house.database, house_claim, inspected_model())
    with house.database.read() as session:
        model = ModelRepository(session, LOCAL_TENANT).get(id)
        assert (model.status, model.format, model.input_shape) == (InspectionStatus.ready, "state_dict", [3, 32, 32])
        assert (model.architecture_args, model.profile["flops"]) == ({"num_classes": 10}, 40000)
