"""Uploads in parts: the same JSON whether the parts pass the service or go straight to the object store."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from store.contract import WorkKind
from store.parts import PartStore
from store.tables import Upload
from store.uploads import expire_uploads, parts_of
from tests.api.conftest import CATALOGUE, Service, pointers, problem, run_service
from tests.store.object_stores import S3_KINDS, opened, stored

PART = 5 << 20
DATA = os.urandom(2 * PART + 1000)
SHA256 = hashlib.sha256(DATA).hexdigest()
PLACES = ["local", *S3_KINDS, *(f"{kind}-public" for kind in S3_KINDS)]


@pytest.fixture(params=PLACES)
def service(request: pytest.FixtureRequest, tmp_path: Path, migrated: Path, moto: str) -> Iterator[Service]:
    """A service over each kind of store; over S3 once with clients sent there and once with all bytes passing it."""
    kind, _, public = request.param.partition("-")
    with (
        opened(kind, tmp_path / "data" / "objects", moto, public=bool(public)) as objects,
        run_service(tmp_path / "data", migrated, objects, upload_part_bytes=PART) as service,
    ):
        yield service


@pytest.fixture
def local(serve: Any) -> Iterator[Service]:
    with serve(upload_part_bytes=PART) as service:
        yield service


def announce(service: Service, **fields: Any) -> dict[str, Any]:
    body = {"filename": "net.pt", "size": len(DATA), "purpose": "model", **fields}
    answer = service.client.post("/v1/uploads", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{service.url}/v1/uploads/{answer.json()['id']}"
    return answer.json()


def send(upload: dict[str, Any], number: int, data: bytes = DATA) -> str:
    """As any HTTP client would: the bytes to the URL, nothing else."""
    part = upload["parts"][number - 1]
    start = (number - 1) * upload["part_size"]
    answer = httpx.put(part["url"], content=data[start : start + part["size"]])
    assert answer.status_code == 200, answer.text
    return answer.headers["etag"]


def complete(service: Service, upload: dict[str, Any], etags: list[str] | None = None) -> httpx.Response:
    parts = None if etags is None else [{"number": n, "etag": etag} for n, etag in enumerate(etags, start=1)]
    return complete_with(service, upload, parts)


def complete_with(service: Service, upload: dict[str, Any], parts: list[dict[str, Any]] | None) -> httpx.Response:
    assert upload["complete_url"].startswith(service.url)
    return httpx.post(upload["complete_url"], json={} if parts is None else {"parts": parts}, timeout=30)


def test_parts_become_a_model_that_is_inspected_like_any_other(service):
    upload = announce(service, sha256=SHA256, name="my net", architecture="cifar_resnet20", input_shape=[3, 32, 32])
    assert [(part["number"], part["size"], part["etag"]) for part in upload["parts"]] == [
        (1, PART, None),
        (2, PART, None),
        (3, 1000, None),
    ]
    etags = [send(upload, number) for number in (1, 2, 3)]
    answer = complete(service, upload, etags)
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert answer.headers["location"] == f"{service.url}/v1/models/{model['id']}"
    assert (model["status"], model["name"], model["filename"]) == ("inspecting", "my net", "net.pt")
    assert (model["size_bytes"], model["sha256"]) == (len(DATA), SHA256)
    assert (model["architecture"], model["input_shape"]) == ("cifar_resnet20", [3, 32, 32])
    assert service.client.get(f"/v1/models/{model['id']}").json() == model
    content = service.client.get(f"/v1/models/{model['id']}/content", follow_redirects=True)
    assert content.content == DATA
    assert content.headers["content-disposition"] == 'attachment; filename="net.pt"'
    assert len(service.rings) == 1
    again = complete(service, upload, etags)
    assert (again.status_code, again.json()["id"]) == (201, model["id"])
    shown = service.client.get(f"/v1/uploads/{upload['id']}").json()
    assert (shown["status"], shown["resource"], shown["parts"]) == ("completed", model["id"], [])
    assert service.claim(WorkKind.inspect_model).id == model["id"]
    assert service.claim(WorkKind.inspect_model) is None


def test_interrupted_upload_tells_what_is_there_and_goes_on(service):
    upload = announce(
        service, purpose="dataset", normalization={"mean": [0.5], "std": [0.25]}, scale=16, convert={"color": "rgb"}
    )
    first = send(upload, 2)
    missing = problem(complete(service, upload), 409, "upload_incomplete")
    assert "2 missing (1, 3)" in missing["detail"]
    found = service.client.get(f"/v1/uploads/{upload['id']}").json()
    assert [part["etag"] for part in found["parts"]] == [None, first, None]
    for number in (1, 3):
        send(found, number)
    dataset = complete(service, upload).json()
    assert (dataset["object"], dataset["sha256"], dataset["scale"]) == ("dataset", SHA256, 16)
    assert dataset["normalization"] == {"mean": [0.5], "std": [0.25]}
    assert dataset["convert"] == {"color": "rgb"}
    assert dataset["name"] == "net"


def test_other_bytes_than_announced_are_refused_and_nothing_stays(service):
    upload = announce(service, sha256="0" * 64)
    for number in (1, 2, 3):
        send(upload, number)
    assert SHA256 in problem(complete(service, upload), 422, "digest_mismatch")["detail"]
    assert stored(service.objects) == []
    problem(service.client.get(f"/v1/uploads/{upload['id']}"), 404, "not_found")
    assert service.client.get("/v1/models").json()["data"] == []


# moto takes any signature, and the length is part of it.
@pytest.mark.parametrize("service", [place for place in PLACES if place != "moto-public"], indirect=True)
def test_part_of_another_size_is_refused(service):
    upload = announce(service)
    url = upload["parts"][2]["url"]
    ours = url.startswith(service.url)
    for data in (DATA[:999], DATA[:1001]):
        answer = httpx.put(url, content=data)
        if ours:
            problem(answer, 422, "wrong_part_size")
        else:
            assert (answer.status_code, "SignatureDoesNotMatch" in answer.text) == (403, True)
    if ours:
        problem(httpx.put(url, content=iter([DATA[:600], DATA[:600]])), 422, "wrong_part_size")
    shown = service.client.get(f"/v1/uploads/{upload['id']}").json()
    assert [part["etag"] for part in shown["parts"]] == [None] * 3


def test_upload_that_is_given_up_leaves_nothing(service):
    upload = announce(service)
    send(upload, 1)
    assert service.client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert stored(service.objects) == []
    problem(service.client.get(f"/v1/uploads/{upload['id']}"), 404, "not_found")
    problem(complete(service, upload), 404, "not_found")


def test_upload_whose_time_is_over_is_swept_with_its_parts_and_a_completed_one_keeps_its_model(service):
    abandoned, finished = announce(service), announce(service, size=7)
    send(abandoned, 1)
    send(finished, 1)
    model = complete(service, finished).json()
    with service.database.transaction() as session:
        session.execute(update(Upload).values(expires_at=service.database.now(session) - timedelta(seconds=1)))
    problem(service.client.get(f"/v1/uploads/{abandoned['id']}"), 404, "not_found")
    assert service.client.get("/v1/uploads").json()["data"] == []
    assert expire_uploads(service.database, service.objects) == 2
    assert expire_uploads(service.database, service.objects) == 0
    assert len(stored(service.objects)) == 1
    assert service.client.get(f"/v1/models/{model['id']}/content", follow_redirects=True).content == DATA[:7]


def test_process_killed_between_object_and_row_is_made_good_by_completing_again(service):
    upload = announce(service, sha256=SHA256)
    for number in (1, 2, 3):
        send(upload, number)
    with service.database.read() as session:
        row = session.get(Upload, upload["id"])
    service.objects.parts.complete(parts_of(row))  # and here it died
    model = complete(service, upload).json()
    assert (model["sha256"], model["status"]) == (SHA256, "inspecting")


def test_many_completions_at_once_make_one_model(service):
    upload = announce(service)
    for number in (1, 2, 3):
        send(upload, number)
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(complete(service, upload))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(service.client.get("/v1/models").json()["data"]) == 1


def test_giving_up_while_it_is_completed_leaves_no_object(local, monkeypatch):
    upload = announce(local)
    for number in (1, 2, 3):
        send(upload, number)
    parts: PartStore = local.objects.parts
    real = parts.complete

    def overtaken(which: Any) -> Any:
        assembled = real(which)
        assert local.client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
        return assembled

    monkeypatch.setattr(parts, "complete", overtaken)
    problem(complete(local, upload), 404, "not_found")
    assert stored(local.objects) == []


def test_completion_must_name_what_is_there(local):
    upload = announce(local)
    old = [send(upload, number) for number in (1, 2, 3)]
    send(upload, 2)
    assert "/parts/1/etag" in pointers(complete(local, upload, old))
    assert "/parts" in pointers(complete(local, upload, old[:1]))
    assert "/parts/0/number" in pointers(complete_with(local, upload, [{"number": 9, "etag": old[0]}]))


def test_model_that_is_certainly_none_is_refused_when_it_is_complete(local):
    upload = announce(local, size=20)
    send(upload, 1, b"7z\xbc\xaf\x27\x1c" + bytes(100))
    assert "/filename" in {e["pointer"] for e in problem(complete(local, upload), 415, "unsupported_format")["errors"]}
    assert stored(local.objects) == []


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"size": 0}, "/size"),
        ({"filename": ""}, "/filename"),
        ({"purpose": "weights"}, "/purpose"),
        ({"sha256": "AB" * 32}, "/sha256"),
        ({"scale": 2.0}, "/scale"),
        ({"convert": {"color": "rgb"}}, "/convert"),
        ({"purpose": "dataset", "architecture": "cifar_resnet20"}, "/architecture"),
        ({"normalization": {"mean": [0.5], "std": [0.0]}}, "/normalization/std/0"),
        ({"colour": "red"}, "/colour"),
    ],
)
def test_wrong_announcement_is_a_422_before_any_byte(local, fields, pointer):
    body = {"filename": "net.pt", "size": 10, "purpose": "model", **fields}
    assert pointer in pointers(local.client.post("/v1/uploads", json=body))


def test_announcement_is_checked_against_catalogue_and_limit(serve):
    with serve(max_upload_bytes=1000) as service:
        service.publish(CATALOGUE)
        body = {"filename": "net.pt", "size": 1001, "purpose": "model"}
        detail = problem(service.client.post("/v1/uploads", json=body), 413, "too_large")["detail"]
        assert detail.startswith("The announced file is larger than the limit of 1000 bytes")
        body = {**body, "size": 10, "architecture": "cifar_resnet21"}
        problem(service.client.post("/v1/uploads", json=body), 422, "unknown_architecture")
        assert stored(service.objects) == []


def test_large_file_has_at_most_a_thousand_parts_and_open_uploads_are_found_by_digest(serve):
    with serve(max_upload_bytes=1 << 40) as service:
        upload = announce(service, size=100 << 30, sha256=SHA256)
        assert len(upload["parts"]) <= 1000
        assert sum(part["size"] for part in upload["parts"]) == 100 << 30
        assert upload["part_size"] % (1 << 20) == 0
        announce(service, size=5)
        found = service.client.get("/v1/uploads", params={"sha256": SHA256}).json()["data"]
        assert [entry["id"] for entry in found] == [upload["id"]]
        assert len(service.client.get("/v1/uploads").json()["data"]) == 2


def test_part_that_the_upload_does_not_have_is_a_404_and_a_completed_upload_takes_none(local):
    upload = announce(local, size=3)
    url = upload["parts"][0]["url"]
    for number in ("0", "2", "-1"):
        problem(httpx.put(url.removesuffix("1") + number, content=b"abc"), 404, "not_found")
    send(upload, 1)
    complete(local, upload)
    problem(httpx.put(url, content=b"abc"), 409, "upload_gone")
    problem(local.client.delete(f"/v1/uploads/{upload['id']}"), 409, "upload_gone")
