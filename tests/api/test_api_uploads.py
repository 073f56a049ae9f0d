"""Models and datasets: what arrives is what is stored, what is wrong leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os

import httpx
import pytest

from store.contract import WorkKind
from tests.api.conftest import CATALOGUE, CHECKPOINT, pointers, problem


def test_uploaded_model_is_stored_as_it_was_sent_and_waits_for_inspection(service):
    data = os.urandom(3_000_000)
    answer = service.client.post(
        "/v1/models",
        data={"architecture": "cifar_resnet20", "architecture_args": "{}", "input_shape": "[3, 32, 32]"},
        files={"file": ("resnet20.th", data)},
    )
    assert answer.status_code == 201
    model = answer.json()
    assert model["status"] == "inspecting"
    assert (model["name"], model["filename"]) == ("resnet20", "resnet20.th")
    assert (model["size_bytes"], model["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (model["architecture"], model["input_shape"]) == ("cifar_resnet20", [3, 32, 32])
    assert answer.headers["location"] == f"{service.url}/v1/models/{model['id']}"
    assert len(service.rings) == 1
    assert service.client.get(f"/v1/models/{model['id']}/content").content == data


def test_model_becomes_ready_with_its_profile(service):
    model = service.upload()
    assert service.client.get(f"/v1/models/{model['id']}").headers["retry-after"] == "1"
    service.inspect_model()
    answer = service.client.get(f"/models/{model['id']}")
    assert "retry-after" not in answer.headers
    assert answer.json()["status"] == "ready"
    assert answer.json()["profile"]["flops"] == 40


def test_rejected_model_says_why(service):
    model = service.upload()
    service.reject_model()
    found = service.client.get(f"/v1/models/{model['id']}").json()
    assert found["status"] == "rejected"
    assert found["error"]["code"] == "unsafe_model"


def test_fields_may_come_after_the_file(service):
    boundary = "edge"
    body = (
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.pt"\r\n\r\nDATA\r\n'
        b'--edge\r\nContent-Disposition: form-data; name="name"\r\n\r\nlate\r\n--edge--\r\n'
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = service.client.post("/v1/models", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["name"], answer.json()["size_bytes"]) == ("late", 4)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\models\\net.pt", "net.pt"),
        ("näh\u202eme.pt", "nähme.pt"),
        ("x" * 400, "x" * 255),
        ("..", ".."),
        ("/", "upload"),
    ],
)
def test_file_name_is_only_shown_and_never_a_path(service, sent, shown):
    answer = service.client.post("/v1/models", files={"file": (sent, CHECKPOINT)})
    model = answer.json()
    assert model["filename"] == shown
    assert [path.name for path in service.stored_files()] == ["content"]
    content = service.client.get(f"/v1/models/{model['id']}/content")
    assert content.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"architecure": "x"}, "/architecure", "Known: file, architecture"),
        ({"architecture": "rm -rf"}, "/architecture", "pattern"),
        ({"architecture_args": "{"}, "/architecture_args", "not JSON"),
        ({"architecture_args": "[]"}, "/architecture_args", "dictionary"),
        ({"architecture_args": '{"a": NaN}'}, "/architecture_args", "NaN"),
        ({"architecture_args": '{"a": "\\ud800"}'}, "/architecture_args", "surrogate"),
        ({"architecture_args": '{"a": "\\u0000"}'}, "/architecture_args", "NUL"),
        ({"architecture_args": '{"a": 1, "a": 2}'}, "/architecture_args", "twice"),
        ({"architecture_args": "[" * 60_000}, "/architecture_args", "deep"),
        ({"input_shape": "[3, 0, 32]"}, "/input_shape/1", "greater than or equal to 1"),
        ({"input_shape": '{"image": []}'}, "/input_shape/image", "at least 1"),
        ({"input_shape": "7"}, "/input_shape", "list"),
        ({"name": ""}, "/name", "at least 1"),
        ({"name": "a\0b"}, "/name", "NUL"),
    ],
)
def test_wrong_field_is_a_422_pointing_at_it_and_nothing_is_kept(service, fields, pointer, words):
    answer = service.client.post("/v1/models", data=fields, files={"file": ("net.pt", CHECKPOINT)})
    assert words in pointers(answer)[pointer]
    assert service.stored_files() == []
    assert service.client.get("/v1/models").json()["data"] == []
    assert service.rings == []


def test_escaped_backslash_before_u0000_is_not_a_nul(service):
    assert service.upload(architecture_args='{"a": "\\\\u0000"}')["architecture_args"] == {"a": "\\u0000"}


def test_missing_file_and_empty_file_are_named(service):
    assert "missing" in pointers(service.client.post("/v1/models", files={"name": (None, "x")}))["/file"]
    empty = service.client.post("/v1/models", files={"file": ("empty.pt", b"")})
    assert "'empty.pt' is empty" in problem(empty, 422, "empty_file")["detail"]
    assert service.stored_files() == []


def test_part_given_twice_is_refused(service):
    twice = [("file", ("a.pt", b"1")), ("file", ("b.pt", b"2"))]
    assert "twice" in pointers(service.client.post("/v1/models", files=twice))["/file"]
    fields = [("name", (None, "a")), ("name", (None, "b")), ("file", ("a.pt", b"1"))]
    assert "twice" in pointers(service.client.post("/v1/models", files=fields))["/name"]
    assert service.stored_files() == []


def test_field_larger_than_1_mib_is_a_413_that_names_the_limit(service):
    answer = service.client.post("/v1/models", data={"architecture_args": "x" * 1_100_000}, files={"file": ("a", b"1")})
    assert "1048576" in problem(answer, 413, "too_large")["detail"]


@pytest.mark.parametrize(("head", "words"), [(b"\x89HDF\r\n\x1a\n", "Keras"), (b"7z\xbc\xaf\x27\x1c", "7z")])
def test_format_that_no_worker_reads_is_refused_by_its_first_bytes(service, head, words):
    answer = service.client.post("/v1/models", files={"file": ("net.h5", head + CHECKPOINT)})
    assert words in problem(answer, 415, "unsupported_format")["detail"]
    assert service.stored_files() == []


def test_announced_upload_over_the_limit_is_refused_before_it_is_read(serve):
    with serve(max_upload_bytes=1 << 20) as service:
        answer = service.client.post("/v1/models", files={"file": ("big.pt", bytes(3 << 20))})
        detail = problem(answer, 413, "too_large")["detail"]
        assert "1048576 bytes" in detail and "1 MiB" in detail
        assert service.stored_files() == []


def test_streamed_upload_over_the_limit_is_stopped_and_removed(serve):
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="big.pt"\r\n\r\n'

    def body():
        yield head
        for _ in range(64):
            yield bytes(64 << 10)

    with serve(max_upload_bytes=(1 << 20) + 1) as service:
        answer = service.client.post(
            "/v1/models", content=body(), headers={"Content-Type": "multipart/form-data; boundary=edge"}
        )
        assert "1048577 bytes" in problem(answer, 413, "too_large")["detail"]
        assert service.stored_files() == []


def test_upload_of_exactly_the_limit_is_taken(serve):
    with serve(max_upload_bytes=1 << 20) as service:
        assert service.upload(bytes(1 << 20))["size_bytes"] == 1 << 20
        over = service.client.post("/v1/models", files={"file": ("big.pt", bytes((1 << 20) + 1))})
        problem(over, 413, "too_large")


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b'--edge\r\nContent-Disposition: form-data; name="file"\r\n\r\nDATA', "boundary=edge", "cut short"),
        (b"--wrong\r\n\r\n", "boundary=edge", "cannot be read"),
        (b"", "boundary=edge", "cut short"),
        (b"--edge--\r\n", "charset=utf-8", "boundary"),
        (b"--edge\r\nX: y\r\n\r\nDATA\r\n--edge--\r\n", "boundary=edge", "Content-Disposition"),
        (
            b'--edge\r\nContent-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: base64\r\n\r\nQQ==\r\n'
            b"--edge--\r\n",
            "boundary=edge",
            "base64",
        ),
    ],
)
def test_broken_multipart_is_a_400_that_says_what_broke(service, body, content_type, words):
    headers = {"Content-Type": f"multipart/form-data; {content_type}"}
    answer = service.client.post("/v1/models", content=body, headers=headers)
    assert words in problem(answer, 400, "malformed_multipart")["detail"]
    assert service.stored_files() == []


def test_other_content_types_are_a_415(client):
    problem(client.post("/v1/models", json={}), 415, "unsupported_media_type")
    problem(client.post("/v1/datasets", content=b"x"), 415, "unsupported_media_type")


def test_unknown_architecture_names_the_nearest(service):
    service.publish(CATALOGUE)
    answer = service.client.post(
        "/v1/models", data={"architecture": "cifar_resnet21"}, files={"file": ("net.pt", CHECKPOINT)}
    )
    assert "cifar_resnet20" in problem(answer, 422, "unknown_architecture")["detail"]
    assert service.stored_files() == []


def test_architecture_arguments_are_checked_against_the_catalogue(service):
    service.publish(CATALOGUE)
    fields = {"architecture": "cifar_resnet", "architecture_args": '{"depth": "20", "wide": 4}'}
    answer = service.client.post("/v1/models", data=fields, files={"file": ("net.pt", CHECKPOINT)})
    errors = pointers(answer)
    assert "integer" in errors["/architecture_args/depth"]
    assert "wide" in errors["/architecture_args"]


def test_without_a_catalogue_the_worker_decides(service):
    assert service.upload(architecture="anything_at_all")["status"] == "inspecting"


def test_dataset_keeps_its_normalisation(service):
    fields = {
        "normalization": json.dumps({"mean": [0.5], "std": [0.25]}),
        "scale": "1",
        "convert": json.dumps({"size": [32, 24]}),
        "name": "digits",
    }
    answer = service.client.post("/v1/datasets", data=fields, files={"file": ("digits.npz", b"PK data")})
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert dataset["normalization"] == {"mean": [0.5], "std": [0.25]}
    assert dataset["convert"] == {"size": [32, 24]}
    assert service.claim(WorkKind.inspect_dataset).subject.convert == {"size": [32, 24]}
    assert (dataset["scale"], dataset["name"], dataset["status"]) == (1, "digits", "inspecting")
    assert service.client.get(f"/v1/datasets/{dataset['id']}").json() == dataset
    assert service.client.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    assert service.stored_files() == []


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"normalization": '{"mean": [0.5], "std": [0]}'}, "/normalization/std/0"),
        ({"normalization": '{"mean": [0.5, 0.5], "std": [1]}'}, "/normalization"),
        ({"normalization": '{"mean": ["0.5"], "std": [1]}'}, "/normalization/mean/0"),
        ({"scale": "0"}, "/scale"),
        ({"scale": "1e999"}, "/scale"),
        ({"scale": '"255"'}, "/scale"),
        ({"convert": "{}"}, "/convert"),
        ({"convert": '{"size": [32]}'}, "/convert/size"),
        ({"convert": '{"size": [0, 32]}'}, "/convert/size/0"),
        ({"convert": '{"color": "blue"}'}, "/convert/color"),
        ({"convert": '{"colour": "rgb"}'}, "/convert/colour"),
    ],
)
def test_wrong_normalisation_is_a_422(service, fields, pointer):
    answer = service.client.post("/v1/datasets", data=fields, files={"file": ("digits.npz", b"PK data")})
    assert pointer in pointers(answer)


def test_deleting_a_model_removes_its_file_unless_a_live_job_uses_it(service):
    model = service.upload()
    job = service.job(model=model["id"])
    answer = service.client.delete(f"/v1/models/{model['id']}")
    assert job["id"] in problem(answer, 409, "in_use")["detail"]
    assert len(service.stored_files()) == 1
    service.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert service.client.delete(f"/v1/models/{model['id']}").status_code == 204
    assert service.stored_files() == []
    problem(service.client.get(f"/v1/models/{model['id']}"), 404, "not_found")


def test_lists_go_newest_first_page_by_page(service):
    ids = [service.upload()["id"] for _ in range(5)]
    seen, after = [], None
    while True:
        page = service.client.get("/v1/models", params={"limit": 2, **({"after": after} if after else {})}).json()
        assert page["object"] == "list"
        seen += [model["id"] for model in page["data"]]
        after = page["next"]
        if not page["has_more"]:
            break
    assert seen == ids[::-1]
    assert after is None
    oldest = service.client.get("/v1/models", params={"order": "asc", "limit": 1}).json()
    assert oldest["data"][0]["id"] == ids[0]
    assert len(service.client.get("/v1/models", params={"limit": 5000}).json()["data"]) == 5


def test_misspelt_query_parameter_is_refused_instead_of_ignored(client: httpx.Client):
    assert "limit" in pointers(client.get("/v1/models", params={"limitt": 3}))["/limitt"]
    assert "label.…" in pointers(client.get("/v1/jobs", params={"labels.team": "a"}))["/labels.team"]
    assert "/limit" in pointers(client.get("/v1/models", params={"limit": "many"}))
    assert "/limit" in pointers(client.get("/v1/models", params={"limit": 0}))


def test_dataset_is_handed_back_as_it_came(service):
    data = b"PK" + bytes(range(256)) * 40
    dataset = service.client.post("/v1/datasets", files={"file": ("digits.npz", data)}).json()
    url = f"/v1/datasets/{dataset['id']}/content"
    answer = service.client.get(url)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-disposition"] == 'attachment; filename="digits.npz"'
    assert service.client.get(url, headers={"Range": "bytes=2-5"}).content == data[2:6]
    assert service.client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
