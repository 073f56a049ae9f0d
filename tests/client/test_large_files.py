"""The client's large files: in parts, past failures, on where an earlier run stopped, and with the key for nobody else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pennyweight import Client, large_files
from pennyweight import client as client_module
from pennyweight.errors import ApiError, DownloadCorrupt, ServiceUnreachable

from store.objects import object_store
from tests.api.conftest import ARTIFACT, HALF, Service, run_service
from tests.store.faulty_s3 import Fault, FaultyWay, faulty_way
from tests.store.object_stores import s3_url

PART = 5 << 20
DATA = os.urandom(3 * PART + 1000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def small_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PARTS_FROM_BYTES", 1 << 20)
    monkeypatch.setattr(large_files, "_PAUSE_S", 0.01)
    monkeypatch.setattr(large_files, "PARALLEL_PARTS", 2)


@pytest.fixture
def service(tmp_path: Path, migrated: Path) -> Iterator[Service]:
    with run_service(tmp_path / "data", migrated, upload_part_bytes=PART, require_keys=True) as service:
        service.client.headers["Authorization"] = f"Bearer {service.key()}"
        yield service


@pytest.fixture
def way(service: Service) -> Iterator[FaultyWay]:
    with faulty_way(service.url) as way:
        yield way


@pytest.fixture
def client(service: Service, way: FaultyWay) -> Iterator[Client]:
    with Client(way.endpoint, api_key=service.client.headers["Authorization"].removeprefix("Bearer ")) as client:
        yield client


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    path.write_bytes(DATA)
    return path


def is_part(method: str, path: str) -> bool:
    return method == "PUT" and "/parts/" in path


def sent_parts(way: FaultyWay) -> list[str]:
    return sorted(seen.path.rsplit("/", 1)[1] for seen in way.seen if is_part(seen.method, seen.path))


def test_large_file_goes_in_parts_past_every_kind_of_failure(client, way, checkpoint):
    way.faults += [
        Fault("refuse", is_part, times=2),
        Fault("slow_down", is_part),
        Fault("lose_answer", is_part),
        Fault("lose_answer", lambda method, path: path.endswith("/complete")),
    ]
    progress: list[tuple[int, int]] = []
    model = client.upload_model(checkpoint, name="mine", on_bytes=lambda sent, total: progress.append((sent, total)))
    assert (model["object"], model["sha256"], model["name"]) == ("model", SHA256, "mine")
    assert progress[-1][0] >= len(DATA) - PART  # a part whose answer was lost is there, and not counted
    assert {total for _, total in progress} == {len(DATA)}
    assert len(client.model(model["id"])["sha256"]) == 64
    assert [fault.times for fault in way.faults] == [0] * 4


def test_second_run_sends_only_what_the_first_could_not(client, way, checkpoint):
    def stuck(method: str, path: str) -> bool:
        return is_part(method, path) and path.endswith(("/2", "/4"))

    way.faults.append(Fault("refuse", stuck, times=1000))
    with pytest.raises(ServiceUnreachable, match="goes on where it was"):
        client.upload_dataset(checkpoint, normalization={"mean": [0.5], "std": [1]})
    way.faults.clear()
    way.seen.clear()
    sent: list[int] = []
    dataset = client.upload_dataset(
        checkpoint, normalization={"mean": [0.5], "std": [1]}, on_bytes=lambda done, total: sent.append(done)
    )
    assert (dataset["object"], dataset["sha256"]) == ("dataset", SHA256)
    assert sent_parts(way) == ["2", "4"]
    assert sent[-1] == len(DATA)
    way.seen.clear()
    client.upload_dataset(checkpoint, scale=2.0)  # not the same announcement
    assert sent_parts(way) == ["1", "2", "3", "4"]


def test_refusal_is_not_repeated(client, way, checkpoint):
    with pytest.raises(ApiError) as caught:
        client.upload_model(checkpoint, input_shape=[0])
    assert caught.value.status == 422
    assert sent_parts(way) == []


def test_job_with_a_large_file_is_the_same_job(client, way, checkpoint, tmp_path):
    images = tmp_path / "images.npz"
    images.write_bytes(b"PK small")
    job = client.submit(checkpoint, {"budget": HALF, "name": "large"}, dataset_path=images, scale=255)
    assert (job["name"], job["status"]) == ("large", "queued")
    assert client.model(job["model"])["sha256"] == SHA256
    assert client.dataset(job["dataset"])["size_bytes"] == 8
    assert sent_parts(way) == ["1", "2", "3", "4"]


def test_parts_go_to_the_object_store_without_the_key(tmp_path, migrated, moto, checkpoint):
    with faulty_way(moto) as s3:
        objects = object_store(s3_url("moto", moto), s3.endpoint)
        s3.faults.append(Fault("slow_down", lambda method, path: "partNumber=2" in path))
        with run_service(tmp_path / "data", migrated, objects, upload_part_bytes=PART, require_keys=True) as service:
            with Client(service.url, api_key=service.key()) as client:
                model = client.upload_model(checkpoint)
            assert model["sha256"] == SHA256
            assert sum("partNumber" in seen.path for seen in s3.seen) == 5
            assert [seen for seen in s3.seen if "authorization" in seen.headers] == []


@pytest.fixture
def job(service: Service) -> str:
    job = service.job()["id"]
    service.inspect_model()
    service.finish_job({"model.onnx": DATA, "report.json": ARTIFACT, "empty": b""})
    return job


def downloads(way: FaultyWay) -> list[str | None]:
    """The ranges that were asked for of the large file."""
    return [seen.headers.get("range") for seen in way.seen if seen.path.endswith("/model.onnx")]


def test_download_goes_on_when_the_connection_breaks(client, way, job, tmp_path):
    way.faults.append(Fault("cut", lambda method, path: path.endswith("/model.onnx"), times=2))
    paths = client.download(job, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in paths} == {
        "empty": b"",
        "model.onnx": DATA,
        "report.json": ARTIFACT,
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["empty", "model.onnx", "report.json"]
    assert downloads(way)[0] is None
    assert len(downloads(way)) == 3
    assert all(asked is not None for asked in downloads(way)[1:])


def test_second_run_fetches_only_the_rest(client, way, job, tmp_path):
    way.faults.append(Fault("refuse", lambda method, path: path.endswith("/model.onnx"), times=1000))
    with pytest.raises(ServiceUnreachable, match="goes on there"):
        client.download(job, tmp_path)
    way.faults.clear()
    (tmp_path / f".model.onnx.{SHA256[:16]}.part").write_bytes(DATA[:PART])
    way.seen.clear()
    client.download(job, tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == DATA
    assert downloads(way) == [f"bytes={PART}-"]


def test_remains_that_are_wrong_are_noticed_and_gone(client, job, tmp_path):
    partial = tmp_path / f".model.onnx.{SHA256[:16]}.part"
    partial.write_bytes(b"something else")
    with pytest.raises(DownloadCorrupt, match=SHA256):
        client.download(job, tmp_path)
    assert not partial.exists()
    partial.write_bytes(DATA + b"too much")
    client.download(job, tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == DATA


def interrupting(meanwhile: Callable[[httpx.Client], None]) -> httpx.Client:
    """A service with the large file, at which `meanwhile` happens while it first gives it."""
    waiting = [meanwhile]

    def pieces(start: int) -> Iterator[bytes]:
        yield DATA[start : start + PART]
        if waiting:
            waiting.pop()(http)
        yield DATA[start + PART :]

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        return httpx.Response(206 if asked else 200, content=pieces(start))

    http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://pennyweight.test")
    return http


def fetched(http: httpx.Client, folder: Path) -> Path:
    return large_files.fetch(http, "/model.onnx", folder, name="model.onnx", size=len(DATA), sha256=SHA256)


@pytest.mark.parametrize("there", [0, PART])
def test_two_who_fetch_one_file_into_one_folder_both_have_it(tmp_path, there):
    if there:
        (tmp_path / f".model.onnx.{SHA256[:16]}.part").write_bytes(DATA[:there])
    others = []
    assert fetched(interrupting(lambda http: others.append(fetched(http, tmp_path))), tmp_path) == others[0]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert others[0].read_bytes() == DATA


def test_who_finds_the_whole_file_in_its_place_is_done(tmp_path):
    def meanwhile(_: httpx.Client) -> None:
        (tmp_path / f".model.onnx.{SHA256[:16]}.part").unlink()
        (tmp_path / "model.onnx").write_bytes(DATA)

    assert fetched(interrupting(meanwhile), tmp_path) == tmp_path / "model.onnx"


def test_what_is_taken_away_while_it_arrives_is_not_taken_for_whole(tmp_path):
    partial = tmp_path / f".model.onnx.{SHA256[:16]}.part"
    with pytest.raises(DownloadCorrupt, match="taken away"):
        fetched(interrupting(lambda _: partial.unlink()), tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def test_bundle_is_a_file_or_nothing(client, way, job, tmp_path):
    way.faults.append(Fault("cut", lambda method, path: "/bundle" in path))
    with pytest.raises(ServiceUnreachable):
        client.bundle(job, tmp_path / "all.zip")
    assert list(tmp_path.glob("*all.zip*")) == []
    assert DATA[:1000] in client.bundle(job, tmp_path / "all.zip").read_bytes()
    with pytest.raises(ApiError):
        client.bundle(job, tmp_path / "all.zip", layout="tree")
