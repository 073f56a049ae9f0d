"""Downloads over S3: streamed through the service, or sent to the object store with a URL for this one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from store.objects import object_store
from tests.api.conftest import ARTIFACT, Service, problem, run_service
from tests.store.object_stores import S3_KINDS, opened


@pytest.fixture(params=S3_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def streaming(kind: str, tmp_path: Path, migrated: Path, moto: str) -> Iterator[Service]:
    with opened(kind, tmp_path, moto) as objects, run_service(tmp_path / "data", migrated, objects) as service:
        yield service


@pytest.fixture
def redirecting(kind: str, tmp_path: Path, migrated: Path, moto: str) -> Iterator[Service]:
    with (
        opened(kind, tmp_path, moto, public=True) as objects,
        run_service(tmp_path / "data", migrated, objects) as service,
    ):
        yield service


def artifact_url(service: Service) -> str:
    job = service.job()["id"]
    service.inspect_model()
    service.finish_job()
    return f"/v1/jobs/{job}/artifacts/model.onnx"


def test_streamed_from_s3_it_is_as_from_local_files(streaming):
    url = artifact_url(streaming)
    whole = streaming.client.get(url)
    assert (whole.status_code, whole.content) == (200, ARTIFACT)
    assert "repr-digest" in whole.headers
    part = streaming.client.get(url, headers={"Range": "bytes=10-19", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, ARTIFACT[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(ARTIFACT)}"
    problem(streaming.client.get(url, headers={"Range": f"bytes={len(ARTIFACT)}-"}), 416, "range_not_satisfiable")
    bundle = streaming.client.get(url.replace("artifacts/model.onnx", "bundle"))
    assert bundle.content.startswith(b"PK") and ARTIFACT in bundle.content


def test_client_is_sent_to_the_object_store_with_a_url_that_needs_no_key(redirecting):
    url = artifact_url(redirecting)
    answer = redirecting.client.get(url)
    assert answer.status_code == 307
    assert answer.headers["cache-control"] == "private, no-store"
    location = answer.headers["location"]
    assert not location.startswith(redirecting.url)
    whole = httpx.get(location)
    assert (whole.status_code, whole.content) == (200, ARTIFACT)
    assert whole.headers["content-type"] == "application/onnx"
    assert whole.headers["content-disposition"] == 'attachment; filename="model.onnx"'
    part = redirecting.client.get(url, headers={"Range": "bytes=100-"}, follow_redirects=True)
    assert (part.status_code, part.content) == (206, ARTIFACT[100:])


def test_what_needs_no_bytes_is_answered_by_the_service_itself(redirecting):
    url = artifact_url(redirecting)
    head = redirecting.client.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(ARTIFACT)))
    assert redirecting.client.get(url, headers={"If-None-Match": head.headers["etag"]}).status_code == 304


def test_object_store_that_is_gone_is_a_503_and_readyz_says_which_part(serve, moto):
    with serve(objects=object_store("s3://nobody?endpoint=http://127.0.0.1:1")) as service:
        answer = service.client.post("/v1/uploads", json={"filename": "a", "size": 9, "purpose": "model"}, timeout=60)
        problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "5"
        ready = service.client.get("/readyz", timeout=60)
        assert (ready.status_code, ready.json()["objects"]["status"]) == (503, "down")
        assert "does not answer" in ready.json()["objects"]["detail"]
        assert ready.json()["database"]["status"] == "ok"
