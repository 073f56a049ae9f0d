"""What every object store keeps: an object is completely there or not at all, and only where its key says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from store.errors import InvalidObjectKey, ObjectMissing, StorageUnavailable
from store.objects import CHUNK_BYTES, ObjectStore, StoredObject
from tests.store.object_stores import KINDS, opened, stored

KEY = "tenants/local/models/mdl_1/content"


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path, moto: str) -> Iterator[ObjectStore]:
    with opened(request.param, tmp_path / "objects", moto) as store:
        yield store


def put(objects: ObjectStore, key: str, data: bytes) -> StoredObject:
    with objects.open_writer(key) as writer:
        writer.write(data)
        return writer.commit()


def read(objects: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    with objects.open_reader(key, start, end) as reader:
        data = reader.read()
        assert len(data) == reader.size
        return data


def test_an_object_appears_with_its_digest_only_when_it_is_committed(objects: ObjectStore) -> None:
    data = os.urandom(3 * CHUNK_BYTES + 17)
    with objects.open_writer(KEY) as writer:
        for offset in range(0, len(data), 100_001):
            writer.write(data[offset : offset + 100_001])
        with pytest.raises(ObjectMissing):
            objects.open_reader(KEY)
        assert writer.commit() == StoredObject(KEY, len(data), hashlib.sha256(data).hexdigest())
    assert read(objects, KEY) == data
    assert stored(objects) == [KEY]


def test_an_object_that_is_not_committed_leaves_nothing(objects: ObjectStore) -> None:
    with pytest.raises(KeyError), objects.open_writer(KEY) as writer:
        writer.write(b"half")
        raise KeyError
    with objects.open_writer(KEY) as writer:
        writer.write(b"half")
    assert stored(objects) == []
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")
    with pytest.raises(ValueError, match="closed"):
        writer.commit()


def test_writing_a_key_again_replaces_the_object_in_one_step(objects: ObjectStore) -> None:
    put(objects, KEY, b"old")
    with objects.open_reader(KEY) as reader:
        put(objects, KEY, b"newer")
        assert reader.read() == b"old"
    assert read(objects, KEY) == b"newer"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=strategies.binary(max_size=50), start=strategies.integers(0, 60), length=strategies.integers(0, 60))
def test_a_range_is_the_slice_of_the_bytes(objects: ObjectStore, data: bytes, start: int, length: int) -> None:
    put(objects, KEY, data)
    assert read(objects, KEY, start) == data[start:]
    assert read(objects, KEY, start, start + length) == data[start : start + length]
    with objects.open_reader(KEY, start) as reader:
        assert reader.read(7) + b"".join(reader) + reader.read(7) == data[start:]


def test_a_range_that_is_none_is_refused(objects: ObjectStore) -> None:
    put(objects, KEY, b"abc")
    for start, end in ((-1, None), (2, 1)):
        with pytest.raises(ValueError, match="Not a range"):
            objects.open_reader(KEY, start, end)


BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "../x",
    "a/./b",
    ".tmp/x",
    "a/.hidden",
    "a\\b",
    "a b",
]


def test_a_key_cannot_leave_the_root_or_name_a_hidden_file(objects: ObjectStore) -> None:
    for key in [*BAD_KEYS, "a\0b", "a\n", "ä", "a/" * 600 + "a", "x" * 256]:
        for use in (objects.open_writer, objects.open_reader, objects.delete, objects.delete_prefix):
            with pytest.raises(InvalidObjectKey):
                use(key)


def test_deleting_a_prefix_removes_that_folder_and_no_neighbour(objects: ObjectStore) -> None:
    for key in ("jobs/1/1/x", "jobs/1/2/deep/y", "jobs/10/1/x", "jobs/2"):
        put(objects, key, b"")
    objects.delete_prefix("jobs/1")
    assert stored(objects) == ["jobs/10/1/x", "jobs/2"]
    objects.delete_prefix("jobs/2")
    objects.delete_prefix("jobs/3")
    assert stored(objects) == ["jobs/10/1/x"]


def test_fetch_gives_a_copy(objects: ObjectStore, tmp_path: Path) -> None:
    data = os.urandom(CHUNK_BYTES + 5)
    put(objects, KEY, data)
    objects.fetch(KEY, tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"spoiled by whoever got it")
    assert read(objects, KEY) == data
    with pytest.raises(ObjectMissing):
        objects.fetch("a/b", tmp_path / "none")


def test_fetch_takes_no_other_bytes_than_those_that_were_stored(objects: ObjectStore, tmp_path: Path) -> None:
    put(objects, KEY, b"half of it")
    objects.fetch(KEY, tmp_path / "whole", hashlib.sha256(b"half of it").hexdigest())
    with pytest.raises(StorageUnavailable, match="came as 10 bytes that are not what was uploaded"):
        objects.fetch(KEY, tmp_path / "half", hashlib.sha256(b"half of it and the rest").hexdigest())
    assert not (tmp_path / "half").exists()


def test_an_object_of_many_pieces_and_of_none_comes_back_whole(objects: ObjectStore) -> None:
    large = os.urandom(9 << 20) + b"the end"  # more than one part of any store
    for data in (b"", large):
        assert put(objects, KEY, data) == StoredObject(KEY, len(data), hashlib.sha256(data).hexdigest())
        assert read(objects, KEY) == data
    assert read(objects, KEY, (8 << 20) - 3, (8 << 20) + 3) == large[(8 << 20) - 3 : (8 << 20) + 3]
    with pytest.raises(KeyError), objects.open_writer("a/b") as writer:
        writer.write(large)
        raise KeyError
    assert stored(objects) == [KEY]


def test_a_store_that_works_says_so(objects: ObjectStore) -> None:
    objects.check()
    assert stored(objects) == []


def test_keys_are_those_of_objects_that_are_old_enough(objects: ObjectStore) -> None:
    for key in ("a/b", "a/c/d", "e"):
        put(objects, key, b"x")
    assert sorted(objects.keys(older_than_s=-60)) == ["a/b", "a/c/d", "e"]
    assert list(objects.keys(older_than_s=60)) == []
