"""Objects that arrive in parts become exactly the announced bytes, once, on every store; or leave nothing."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from store.errors import ObjectMissing, PartsGone, PartsIncomplete
from store.objects import ObjectStore
from store.parts import Assembled, PartUpload, StoredPart
from tests.store.object_stores import FAITHFUL_KINDS, KINDS, opened, stored

PART = 5 << 20  # the least that S3 takes
DATA = os.urandom(2 * PART + 12345)
KEY = "tenants/local/models/mdl_1/content"
WHOLE = Assembled(len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path, moto: str) -> Iterator[ObjectStore]:
    with opened(request.param, tmp_path / "objects", moto) as store:
        yield store


@pytest.fixture
def upload(objects: ObjectStore) -> PartUpload:
    return objects.parts.begin(KEY, len(DATA), PART)


def send(objects: ObjectStore, upload: PartUpload, number: int, data: bytes = DATA) -> StoredPart:
    start = upload.offset_of(number)
    piece = data[start : start + upload.size_of(number)]
    with objects.parts.write(upload, number) as writer:
        for at in range(0, len(piece), 1 << 20):
            writer.write(piece[at : at + (1 << 20)])
        return writer.commit()


def test_parts_in_any_order_become_one_object_and_completing_again_changes_nothing(objects, upload):
    assert (upload.part_count, upload.size_of(3)) == (3, 12345)
    assert objects.parts.list(upload) == []
    sent = [send(objects, upload, number) for number in (3, 1, 2)]
    assert sorted(objects.parts.list(upload), key=lambda part: part.number) == sorted(
        sent, key=lambda part: part.number
    )
    with pytest.raises(ObjectMissing):
        objects.open_reader(KEY)
    assert objects.parts.complete(upload) == WHOLE
    assert objects.parts.complete(upload) == WHOLE
    with objects.open_reader(KEY) as reader:
        assert hashlib.sha256(reader.read()).hexdigest() == WHOLE.sha256
    assert stored(objects) == [KEY]
    objects.parts.abort(upload)  # too late
    assert stored(objects) == [KEY]
    with objects.open_reader(KEY, len(DATA) - 5) as reader:
        assert reader.read() == DATA[-5:]


def test_completing_says_which_parts_are_missing_and_changes_nothing(objects, upload):
    send(objects, upload, 2)
    with pytest.raises(PartsIncomplete, match=r"2 missing \(1, 3\)") as caught:
        objects.parts.complete(upload)
    assert caught.value.missing == (1, 3)
    for number in (1, 3):
        send(objects, upload, number)
    assert objects.parts.complete(upload) == WHOLE


def test_a_part_that_is_sent_again_replaces_the_one_before(objects, upload):
    other = bytes(len(DATA))
    for number in (1, 2, 3):
        send(objects, upload, number, other)
    before = {part.number: part.etag for part in objects.parts.list(upload)}
    for number in (1, 2, 3):
        assert send(objects, upload, number).etag != before[number]
    assert objects.parts.complete(upload) == WHOLE


def test_a_part_that_breaks_off_is_not_there(objects, upload):
    with objects.parts.write(upload, 1) as writer:
        writer.write(DATA[: PART - 1])
        with pytest.raises(ValueError, match="has 5242880 bytes"):
            writer.commit()
    with objects.parts.write(upload, 3) as writer, pytest.raises(ValueError, match="has 12345 bytes"):
        writer.write(DATA[:12346])
    assert objects.parts.list(upload) == []


@pytest.mark.parametrize("objects", FAITHFUL_KINDS, indirect=True)
def test_an_aborted_upload_takes_no_parts_and_leaves_nothing(objects, upload):
    send(objects, upload, 1)
    objects.parts.abort(upload)
    objects.parts.abort(upload)
    assert stored(objects) == []
    for use in (
        lambda: objects.parts.list(upload),
        lambda: objects.parts.complete(upload),
        lambda: send(objects, upload, 2),
    ):
        with pytest.raises(PartsGone):
            use()


@pytest.mark.parametrize("objects", FAITHFUL_KINDS, indirect=True)
def test_only_old_uploads_are_aborted_by_age(objects, upload):
    send(objects, upload, 1)
    finished = objects.parts.begin("a/b", 5, PART)
    send(objects, finished, 1)
    objects.parts.complete(finished)
    assert objects.parts.abort_older_than(3600) == 0
    assert len(objects.parts.list(upload)) == 1
    time.sleep(1.1)  # S3 keeps whole seconds
    assert objects.parts.abort_older_than(0.05) == 1
    assert stored(objects) == ["a/b"]


def test_an_object_of_one_byte_is_one_part(objects):
    upload = objects.parts.begin(KEY, 1, PART)
    send(objects, upload, 1)
    assert objects.parts.complete(upload) == Assembled(1, hashlib.sha256(DATA[:1]).hexdigest())


def test_many_completions_at_once_give_one_answer(objects, upload):
    for number in (1, 2, 3):
        send(objects, upload, number)
    answers: list[object] = []

    def complete() -> None:
        try:
            answers.append(objects.parts.complete(upload))
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [WHOLE] * 4
    assert stored(objects) == [KEY]


def test_a_writer_that_hangs_is_overtaken_and_can_do_no_more_harm(tmp_path):
    with opened("local", tmp_path / "objects", None) as objects:
        upload = objects.parts.begin(KEY, len(DATA), PART)
        with objects.parts.write(upload, 1) as hanging:
            hanging.write(bytes(1000))
            for number in (1, 2, 3):
                send(objects, upload, number)
            with pytest.raises(PartsGone, match="sent again"):
                hanging.write(bytes(1000))
            assert objects.parts.complete(upload) == WHOLE
            with pytest.raises(PartsGone, match="completed"):
                hanging.write(bytes(1000))
        with objects.open_reader(KEY) as reader:
            assert reader.read() == DATA


@pytest.mark.parametrize("seed", range(4))
def test_the_digest_is_right_whoever_took_which_part_and_whatever_came_again(tmp_path, seed):
    order = random.Random(seed)
    data = order.randbytes(40 * 1000 + 7)
    with opened("local", tmp_path / "objects", None) as one, opened("local", tmp_path / "objects", None) as other:
        upload = one.parts.begin(KEY, len(data), 1000)
        numbers = order.sample(range(1, upload.part_count + 1), upload.part_count) if seed else range(1, 42)
        for number in numbers:
            processes = [one, other] if seed > 1 else [one]
            if order.random() < 0.3:
                send(order.choice(processes), upload, number, bytes(len(data)))
            if order.random() < 0.2:
                with order.choice(processes).parts.write(upload, number) as broken:
                    broken.write(bytes(5))
            send(order.choice(processes), upload, number, data)
        again = order.choice(list(numbers))
        send(order.choice(processes), upload, again, bytes(len(data)))
        with one.parts.write(upload, again) as hanging:
            hanging.write(bytes(5))
            send(other, upload, again, data)
            assert one.parts.complete(upload) == Assembled(len(data), hashlib.sha256(data).hexdigest())


def test_the_digest_is_right_when_parts_arrive_at_once(tmp_path):
    data = os.urandom(64 * 5000)
    with opened("local", tmp_path / "objects", None) as objects:
        upload = objects.parts.begin(KEY, len(data), 5000)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda number: send(objects, upload, number, data), range(1, 65)))
        assert objects.parts.complete(upload).sha256 == hashlib.sha256(data).hexdigest()
