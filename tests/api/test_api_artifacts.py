"""Artifacts: listed by name, streamed with validators, digest and ranges."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timedelta

import pytest

from tests.api.conftest import ARTIFACT, Service, pointers, problem

DIGEST = hashlib.sha256(ARTIFACT)
SIZE = len(ARTIFACT)


@pytest.fixture
def url(service: Service) -> str:
    """The artifact of a finished job."""
    job = service.job()["id"]
    service.inspect_model()
    service.finish_job()
    return f"/v1/jobs/{job}/artifacts/model.onnx"


def test_artifacts_are_listed_once_the_job_has_succeeded(service):
    job = service.job()["id"]
    assert service.client.get(f"/v1/jobs/{job}/artifacts").json()["data"] == []
    service.inspect_model()
    service.finish_job()
    listed = service.client.get(f"/v1/jobs/{job}/artifacts").json()
    assert listed["data"] == [
        {
            "object": "artifact",
            "name": "model.onnx",
            "media_type": "application/onnx",
            "size": SIZE,
            "sha256": DIGEST.hexdigest(),
            "url": f"{service.url}/v1/jobs/{job}/artifacts/model.onnx",
        }
    ]
    assert (listed["has_more"], listed["next"]) == (False, None)
    after = service.client.get(f"/v1/jobs/{job}/artifacts", params={"after": "model.onnx"}).json()
    assert after["data"] == []
    unknown = service.client.get(f"/v1/jobs/{job}/artifacts", params={"after": "model.exe"})
    assert "'model.exe'" in pointers(unknown)["/after"]


def test_a_finished_job_says_until_when_its_artifacts_are_kept(serve):
    with serve(retain_artifacts_days=1.5) as service:
        jobs = service.job()["id"], service.job(name="given up")["id"]
        service.inspect_model()
        service.finish_job()
        service.client.post(f"/v1/jobs/{jobs[1]}/cancel")
        finished, cancelled = (service.client.get(f"/v1/jobs/{job}").json() for job in jobs)
        finished_at, expires_at = (datetime.fromisoformat(finished[at]) for at in ("finished_at", "expires_at"))
        assert expires_at - finished_at == timedelta(days=1.5)
        assert cancelled["finished_at"] is not None and cancelled["expires_at"] is None
        listed = {job["id"]: job["expires_at"] for job in service.client.get("/v1/jobs").json()["data"]}
        assert listed == {jobs[0]: finished["expires_at"], jobs[1]: None}


def test_download_carries_type_name_digest_and_validator(client, url):
    answer = client.get(url)
    assert answer.content == ARTIFACT
    assert answer.headers["content-type"] == "application/onnx"
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["content-disposition"] == 'attachment; filename="model.onnx"'
    assert answer.headers["etag"] == f'"{DIGEST.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(DIGEST.digest()).decode()}:"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(url, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_head_tells_everything_but_the_bytes(client, url):
    answer = client.head(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["etag"] == f'"{DIGEST.hexdigest()}"'


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=5-{SIZE * 9}", 5, SIZE),
        (f"bytes=-{SIZE * 9}", 0, SIZE),
    ],
)
def test_range_is_answered_with_exactly_those_bytes(client, url, asked, start, end):
    answer = client.get(url, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == ARTIFACT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"


@pytest.mark.parametrize("asked", ["bytes=9-1", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=" + "9" * 5000 + "-"])
def test_range_that_is_not_understood_is_ignored(client, url, asked):
    answer = client.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, ARTIFACT)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=-0"])
def test_range_outside_the_file_is_a_416_that_tells_its_size(client, url, asked):
    answer = client.get(url, headers={"Range": asked})
    problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


def test_if_range_sends_the_rest_only_of_the_same_file(client, url):
    headers = {"Range": "bytes=10-", "If-Range": f'"{DIGEST.hexdigest()}"'}
    assert client.get(url, headers=headers).status_code == 206
    assert client.get(url, headers={**headers, "If-Range": '"older"'}).content == ARTIFACT


def test_unknown_artifact_and_vanished_file_are_404s(service, url):
    problem(service.client.get(url.replace("model.onnx", "model.pt2")), 404, "not_found")
    problem(service.client.get(url.replace("model.onnx", "..%2f..%2fcontent")), 404, "not_found")
    for path in service.stored_files():
        path.unlink()
    assert "deleted" in problem(service.client.get(url), 404, "not_found")["detail"]


def test_event_cursor_is_a_number(client, url):
    job = url.removesuffix("/artifacts/model.onnx")
    assert "/after" in pointers(client.get(f"{job}/events", params={"after": "newest"}))
    assert "/after" in pointers(client.get(f"{job}/events", params={"after": 10**30}))
