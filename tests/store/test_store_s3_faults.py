"""S3 that is slow, cut off, wrongly set up or gone: what can be repeated is, and the rest is said in words."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import s3_connection
from store.errors import StorageUnavailable
from store.objects import ObjectStore, object_store
from store.s3_connection import S3Address
from tests.store.faulty_s3 import Fault, FaultyWay, faulty_way
from tests.store.object_stores import BUCKET, REAL_S3_URL, s3_url, stored

ROOT = Path(__file__).parents[2]
KEY = "tenants/local/models/mdl_1/content"
DATA = os.urandom((17 << 20) + 5)  # three parts of the writer


@pytest.fixture
def way(moto: str) -> Iterator[FaultyWay]:
    with faulty_way(moto) as way:
        yield way


@pytest.fixture
def objects(way: FaultyWay) -> ObjectStore:
    return object_store(s3_url("moto", way.endpoint))


def put(objects: ObjectStore, data: bytes = DATA) -> None:
    with objects.open_writer(KEY) as writer:
        writer.write(data)
        assert writer.commit().sha256 == hashlib.sha256(data).hexdigest()


def read(objects: ObjectStore) -> bytes:
    with objects.open_reader(KEY) as reader:
        return reader.read()


@pytest.mark.parametrize("kind", ["slow_down", "refuse", "lose_answer"])
@pytest.mark.parametrize("operation", ["uploads", "partNumber=2", "uploadId"])
def test_each_request_of_a_writer_is_repeated_when_it_fails(way, objects, kind, operation):
    def matches(method: str, path: str) -> bool:
        if operation == "uploadId":  # the completion
            return method == "POST" and "uploadId" in path
        return operation in path and "uploadId" not in path if operation == "uploads" else operation in path

    way.faults.append(Fault(kind, matches))
    put(objects)
    assert way.faults[0].times == 0
    assert read(objects) == DATA


def test_reader_goes_on_where_the_connection_broke(way, objects):
    put(objects)
    way.faults.append(Fault("cut", lambda method, path: method == "GET" and KEY in path, times=3))
    assert read(objects) == DATA
    assert way.faults[0].times == 0
    with objects.open_reader(KEY, 100, len(DATA) - 100) as reader:
        assert hashlib.sha256(b"".join(reader)).digest() == hashlib.sha256(DATA[100:-100]).digest()


def test_reader_that_gets_nowhere_says_so(way, objects, monkeypatch):
    monkeypatch.setattr("store.s3_streams.RESUME_PAUSE_S", 0.001)
    put(objects, b"x" * 1000)
    way.faults.append(Fault("cut", lambda method, path: method == "GET", times=1000))
    with pytest.raises(StorageUnavailable):
        read(objects)


def test_parts_that_could_not_be_aborted_are_said_and_found_later(way, objects, monkeypatch, caplog):
    monkeypatch.setattr(s3_connection, "ATTEMPTS", 1)
    objects = object_store(s3_url("moto", way.endpoint))
    way.faults.append(Fault("slow_down", lambda method, path: method == "DELETE"))
    with caplog.at_level(logging.WARNING, "store"), pytest.raises(KeyError), objects.open_writer(KEY) as writer:
        writer.write(DATA)
        raise KeyError
    assert "stay until the sweeper" in caplog.text
    assert len(stored(objects)) == 1
    assert objects.parts.abort_older_than(-60) == 1
    assert stored(objects) == []


def test_store_that_stays_overloaded_is_unavailable_in_words(way, monkeypatch):
    monkeypatch.setattr(s3_connection, "ATTEMPTS", 2)
    objects = object_store(s3_url("moto", way.endpoint))
    way.faults.append(Fault("slow_down", lambda method, path: True, times=1000))
    with pytest.raises(StorageUnavailable, match="SlowDown") as caught:
        put(objects, b"x")
    assert caught.value.code == "SlowDown"
    assert isinstance(caught.value, OSError)
    assert len(way.seen) == 2


def test_store_that_is_not_there_is_said_soon(monkeypatch, moto):
    monkeypatch.setattr(s3_connection, "ATTEMPTS", 2)
    with pytest.raises(StorageUnavailable, match=r"does not answer .*http://127\.0\.0\.1:1"):
        object_store("s3://bucket?endpoint=http://127.0.0.1:1").check()


def test_missing_bucket_is_named(moto):
    objects = object_store(f"s3://nobody?endpoint={moto}")
    for use in (objects.check, lambda: objects.open_reader(KEY, 0, 5).read(), lambda: put(objects, b"x")):
        with pytest.raises(StorageUnavailable, match="nobody"):
            use()
    with pytest.raises(StorageUnavailable, match="create it"):
        objects.check()


def test_missing_credentials_are_named(moto, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageUnavailable, match="AWS_ACCESS_KEY_ID"):
        object_store(f"s3://{BUCKET}?endpoint={moto}").check()


if REAL_S3_URL:  # moto takes any credentials

    def test_wrong_credentials_are_said(moto, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        objects = object_store(s3_url("s3", None))
        for use in (objects.check, lambda: put(objects, b"x")):
            with pytest.raises(StorageUnavailable, match=r"refused .*AWS_SECRET_ACCESS_KEY"):
                use()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "s3://bucket/prefix"),
        ("s3://key:secret@bucket", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket?endpoint=minio:9000", "https://s3.example.org"),
        ("s3://bucket?region=eu&colour=red", "colour"),
        ("s3://bucket?addressing=none", "addressing"),
    ],
)
def test_storage_url_that_is_wrong_is_refused_in_words(url, words):
    with pytest.raises(ValueError, match=words):
        object_store(url)


def test_storage_url_says_bucket_prefix_and_place(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert S3Address.parse("s3://b") == S3Address("b", "", None, "eu-west-3", "auto")
    assert S3Address.parse("s3://b/some/where/?endpoint=http://h:1&region=r&addressing=virtual") == S3Address(
        "b", "some/where/", "http://h:1", "r", "virtual"
    )


def test_public_url_signs_what_clients_see_and_local_files_have_none(moto, tmp_path):
    objects = object_store(f"s3://{BUCKET}/p?endpoint={moto}", "https://files.example.org/")
    url = objects.download_url(KEY, disposition="attachment", media_type="text/plain")
    assert url is not None and url.startswith(f"https://files.example.org/{BUCKET}/p/{KEY}?")
    upload = objects.parts.begin(KEY, 5, 5)
    part = objects.parts.url(upload, 1)
    assert part is not None and part.startswith(f"https://files.example.org/{BUCKET}/p/{KEY}?")
    assert "X-Amz-SignedHeaders=content-length%3Bhost" in part
    objects.parts.abort(upload)
    with pytest.raises(ValueError, match="PENNYWEIGHT_STORAGE_PUBLIC_URL"):
        object_store(tmp_path.as_uri(), "https://files.example.org")
    with pytest.raises(ValueError, match="PENNYWEIGHT_STORAGE_PUBLIC_URL"):
        object_store(f"s3://{BUCKET}", "files.example.org")


MEMORY_PROBE = """
import resource, sys; from pathlib import Path; from store.objects import object_store
objects = object_store(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def write(mib):
    with objects.open_writer("a/b") as writer:
        for _ in range(mib):
            writer.write(bytes(1 << 20))
        writer.commit()
write(24)
objects.fetch("a/b", Path(sys.argv[2]) / "one")
before = peak()
write(128)
objects.fetch("a/b", Path(sys.argv[2]) / "two")
upload = objects.parts.begin("a/c", 64 << 20, 32 << 20)
for number in (1, 2):
    with objects.parts.write(upload, number) as part:
        for _ in range(32):
            part.write(bytes(1 << 20))
        part.commit()
objects.parts.complete(upload)
print(peak() - before)
objects.delete_prefix("a")
"""


def test_memory_stays_flat_while_large_objects_go_in_and_out(moto, tmp_path):
    url = s3_url("s3" if REAL_S3_URL else "moto", moto)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, url, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 24 * 1024  # KiB
