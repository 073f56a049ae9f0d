"""Jobs: from JSON or one form, polled by version, listed, cancelled, retried, deleted."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from store.contract import DatasetInspection, ErrorCode, ErrorInfo, JobProgress, WorkKind
from store.work import fail_job, finish_dataset, heartbeat
from tests.api.conftest import ARTIFACT, CATALOGUE, CHECKPOINT, HALF, NO_DATASET, NO_MODEL, pointers, problem, spec


def test_new_job_is_queued_with_its_links_and_defaults(service):
    model = service.upload()
    answer = service.client.post("/v1/jobs", json={"model": model["id"], "budget": HALF, "labels": {"git": "abc"}})
    assert answer.status_code == 201
    job = answer.json()
    assert (job["status"], job["model"], job["dataset"], job["labels"]) == ("queued", model["id"], None, {"git": "abc"})
    assert job["request"]["methods"] == [{"type": "auto"}]
    assert job["request"]["outputs"] == ["onnx", "safetensors", "report"]
    assert job["progress"] == {"fraction": 0, "eta_s": None, "updated_at": None, "stages": []}
    here = f"{service.url}/v1/jobs/{job['id']}"
    assert job["links"]["self"] == answer.headers["location"] == here
    assert job["links"]["artifacts"] == f"{here}/artifacts"
    assert answer.headers["retry-after"] == "1"
    assert len(service.rings) == 2
    assert service.client.get(here).json() == job


def test_job_is_also_created_without_the_version_prefix(service):
    answer = service.client.post("/jobs", json={"model": service.upload()["id"], "budget": HALF})
    assert answer.status_code == 201
    assert answer.json()["links"]["self"].startswith(f"{service.url}/v1/jobs/job_")


def test_polling_with_the_etag_costs_a_304_until_something_changes(service):
    job = service.job()
    first = service.client.get(f"/v1/jobs/{job['id']}")
    etag = first.headers["etag"]
    for sent in (etag, f'"other", {etag}', etag.removeprefix("W/"), "*"):
        again = service.client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": sent})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert again.headers["retry-after"] == "1"
    service.inspect_model()
    service.claim(WorkKind.job)
    changed = service.client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    assert (changed.json()["status"], changed.json()["attempt"]) == ("running", 1)


def test_finished_job_carries_its_result_and_asks_for_no_more_polling(service):
    job = service.job()
    service.inspect_model()
    service.finish_job()
    answer = service.client.get(f"/v1/jobs/{job['id']}")
    assert "retry-after" not in answer.headers
    result = answer.json()["result"]
    assert result["met"] is True
    assert result["artifacts"][0]["url"] == f"{service.url}/v1/jobs/{job['id']}/artifacts/model.onnx"
    assert service.client.get(result["artifacts"][0]["url"]).content == ARTIFACT


def test_job_on_something_that_is_not_there_is_a_404_with_a_pointer(service):
    answer = service.client.post("/v1/jobs", json={"model": NO_MODEL, "budget": HALF})
    assert problem(answer, 404, "not_found")["errors"][0]["pointer"] == "/model"
    body = {"model": service.upload()["id"], "dataset": NO_DATASET, "budget": HALF}
    assert problem(service.client.post("/v1/jobs", json=body), 404, "not_found")["errors"][0]["pointer"] == "/dataset"


def test_job_on_a_rejected_model_is_refused_with_the_reason(service):
    model = service.upload()
    service.reject_model()
    answer = service.client.post("/v1/jobs", json={"model": model["id"], "budget": HALF})
    document = problem(answer, 422, "upload_rejected")
    assert document["errors"][0]["code"] == "unsafe_model"
    assert "os.system" in document["detail"]


def test_one_form_creates_model_dataset_and_job_together(service):
    files = {"model": ("net.pt", CHECKPOINT), "dataset": ("digits.npz", b"PK images")}
    data = {
        "spec": spec(accuracy={"max_drop": 0.01}, recovery={"epochs": 1}),
        "architecture": "cifar_resnet20",
        "input_shape": "[1, 8, 8]",
        "normalization": '{"mean": [0.1], "std": [0.3]}',
        "scale": "16",
    }
    answer = service.client.post("/v1/jobs", data=data, files=files)
    assert answer.status_code == 201, answer.text
    job = answer.json()
    model = service.client.get(f"/v1/models/{job['model']}").json()
    dataset = service.client.get(f"/v1/datasets/{job['dataset']}").json()
    assert (model["architecture"], model["input_shape"]) == ("cifar_resnet20", [1, 8, 8])
    assert (dataset["scale"], dataset["normalization"]) == (16, {"mean": [0.1], "std": [0.3]})
    assert job["request"]["model"] == model["id"]
    assert job["request"]["dataset"] == dataset["id"]
    assert len(service.rings) == 1


def test_form_that_fails_in_the_database_leaves_no_objects(service):
    answer = service.client.post(
        "/v1/jobs", data={"spec": spec(dataset=NO_DATASET)}, files={"model": ("net.pt", CHECKPOINT)}
    )
    problem(answer, 404, "not_found")
    assert service.stored_files() == []
    assert service.client.get("/v1/models").json()["data"] == []


def test_jobs_are_filtered_by_status_and_labels(service):
    model = service.upload()["id"]
    red, blue, old = (
        service.job(model=model, labels=labels)["id"]
        for labels in ({"team": "vision", "run": "1"}, {"team": "vision", "run": "2"}, {"team": "audio"})
    )
    service.client.post(f"/v1/jobs/{old}/cancel")

    def listed(**query):
        return [job["id"] for job in service.client.get("/v1/jobs", params=query).json()["data"]]

    assert listed() == [old, blue, red]
    assert listed(status="queued") == [blue, red]
    assert listed(status=["queued", "cancelled"], order="asc") == [red, blue, old]
    assert listed(**{"label.team": "vision"}) == [blue, red]
    assert listed(**{"label.team": "vision", "label.run": "1"}) == [red]
    assert listed(**{"label.team": "vision", "label.run": "3"}) == []
    assert listed(status="failed") == []
    assert "/status/0" in pointers(service.client.get("/v1/jobs", params={"status": "done"}))
    assert "/team" in pointers(service.client.get("/v1/jobs", params={"team": "vision"}))


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/jobs?label.team=vision&label.team=audio", "/label.team"),
        ("/v1/jobs?limit=1&limit=2", "/limit"),
        ("/v1/jobs?after=job_1", "/after"),
        ("/v1/jobs?after=" + NO_MODEL, "/after"),
        ("/v1/models?after=newest", "/after"),
        ("/v1/datasets?after=" + NO_MODEL, "/after"),
        ("/v1/methods?after=wishful", "/after"),
        ("/v1/architectures?search=resnet&after=vgg", "/after"),
    ],
)
def test_filter_or_cursor_that_would_be_misread_is_a_422(service, path, pointer):
    service.publish(CATALOGUE)
    service.job(labels={"team": "audio"})
    assert pointer in pointers(service.client.get(path))


def test_cursor_keeps_its_place_when_its_entry_is_gone(service):
    model = service.upload()["id"]
    first, second = (service.job(model=model)["id"] for _ in range(2))
    service.job(model=model)
    service.client.post(f"/v1/jobs/{second}/cancel")
    assert service.client.delete(f"/v1/jobs/{second}").status_code == 204
    assert [job["id"] for job in service.client.get("/v1/jobs", params={"after": second}).json()["data"]] == [first]


def test_labels_that_a_dataset_is_known_not_to_have_are_refused_at_once(service):
    model = service.upload()["id"]
    dataset = service.client.post("/v1/datasets", files={"file": ("d.npz", b"PK")}).json()["id"]
    body = {
        "model": model,
        "dataset": dataset,
        "budget": HALF,
        "accuracy": {"max_drop": 0.1},
        "recovery": {"epochs": 1, "distill": False},
    }
    assert service.client.post("/v1/jobs", json=body).status_code == 201
    found = {"format": "npz", "classes": None, "splits": {}, "image_shape": [3, 8, 8], "mean": [], "std": []}
    inspection = DatasetInspection.model_validate(found)
    finish_dataset(service.database, service.claim(WorkKind.inspect_dataset), inspection)
    for path in ("/v1/jobs", "/v1/plans"):
        found = pointers(service.client.post(path, json=body))
        assert set(found) == {"/accuracy", "/recovery"} and "no labels" in found["/accuracy"]
    del body["model"]
    form = {"data": {"spec": json.dumps(body)}, "files": {"model": ("net.pt", CHECKPOINT)}}
    assert set(pointers(service.client.post("/v1/jobs", **form))) == {"/spec/accuracy", "/spec/recovery"}
    assert service.job(model=model, dataset=dataset)["status"] == "queued"


def test_cancel_ends_a_queued_job_and_may_be_repeated(service):
    job = service.job()
    for _ in range(2):
        answer = service.client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_cancel_of_a_running_job_waits_for_its_worker_and_a_finished_one_is_a_conflict(service):
    running, finished = service.job()["id"], service.job()["id"]
    service.inspect_model()
    service.inspect_model()
    service.claim(WorkKind.job)
    service.finish_job()
    answer = service.client.post(f"/v1/jobs/{running}/cancel")
    assert answer.json()["status"] == "cancelling"
    assert answer.headers["retry-after"] == "1"
    problem(service.client.post(f"/v1/jobs/{finished}/cancel"), 409, "job_not_cancellable")


def test_retry_makes_a_new_job_of_a_finished_one(service):
    job = service.job(seed=7)
    problem(service.client.post(f"/v1/jobs/{job['id']}/retry"), 409, "job_not_terminal")
    service.client.post(f"/v1/jobs/{job['id']}/cancel")
    again = service.client.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 201
    assert (again.json()["retry_of"], again.json()["status"]) == (job["id"], "queued")
    assert again.json()["request"] == job["request"]


def test_delete_removes_a_finished_job_with_its_artifacts(service):
    job = service.job()["id"]
    problem(service.client.delete(f"/v1/jobs/{job}"), 409, "job_not_terminal")
    service.inspect_model()
    service.finish_job()
    assert len(service.stored_files()) == 2
    assert service.client.delete(f"/v1/jobs/{job}").status_code == 204
    assert [path.parts[-3] for path in service.stored_files()] == ["models"]
    problem(service.client.get(f"/v1/jobs/{job}"), 404, "not_found")


def test_events_tell_the_story_of_a_job(service):
    job = service.job()["id"]
    service.inspect_model()
    service.finish_job()
    page = service.client.get(f"/v1/jobs/{job}/events", params={"order": "asc", "limit": 2}).json()
    assert [event["type"] for event in page["data"]] == ["job.queued", "job.running"]
    assert (page["has_more"], page["next"]) == (True, "2")
    rest = service.client.get(f"/v1/jobs/{job}/events", params={"order": "asc", "after": page["next"]}).json()
    assert [(event["seq"], event["type"]) for event in rest["data"]] == [(3, "job.succeeded")]
    newest_first = service.client.get(f"/v1/jobs/{job}/events").json()["data"]
    assert [event["seq"] for event in newest_first] == [3, 2, 1]


def test_list_tells_of_each_job_what_a_look_at_it_tells(service):
    """Lists are written without validation, single jobs with it."""
    model = service.upload()["id"]
    service.inspect_model()
    finished = service.job(model=model, labels={"team": "a"})["id"]
    service.finish_job({"model.onnx": b"1", "report.json": b"2"})
    failed = service.job(model=model)["id"]
    work = service.claim(WorkKind.job)
    fail_job(service.database, work, ErrorInfo(code=ErrorCode.internal, message="It broke.", details={"at": [1]}))
    running = service.job(model=model)["id"]
    work = service.claim(WorkKind.job)
    stages = [{"name": "plan", "status": "running", "step": 1, "steps": 9}]
    progress = JobProgress(fraction=0.25, eta_s=3.5, updated_at=datetime.now(UTC), stages=stages)
    heartbeat(service.database, work, lease_s=60, progress=progress)
    queued = service.job(model=model, name="last", dataset=None)["id"]
    ids = [queued, running, failed, finished]
    entries = service.client.get("/v1/jobs").json()["data"]
    assert [job["result"] is not None for job in entries] == [False] * 3 + [True]
    for entry, id in zip(entries, ids, strict=True):
        alone = service.client.get(f"/v1/jobs/{id}").json()
        assert {key: value for key, value in entry.items() if value != alone[key]} == {}
        assert set(entry) == set(alone)
