"""Local objects: what only files can do wrong, and memory that stays flat."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from store.objects import LocalObjects, StoredObject, object_store

ROOT = Path(__file__).parents[2]
KEY = "tenants/local/models/mdl_1/content"


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects")


def put(objects: LocalObjects, key: str, data: bytes) -> StoredObject:
    with objects.open_writer(key) as writer:
        writer.write(data)
        return writer.commit()


def read(objects: LocalObjects, key: str, start: int = 0, end: int | None = None) -> bytes:
    with objects.open_reader(key, start, end) as reader:
        data = reader.read()
        assert len(data) == reader.size
        return data


def files(objects: LocalObjects) -> list[str]:
    return sorted(str(path.relative_to(objects._root)) for path in objects._root.rglob("*") if path.is_file())


def test_deleting_removes_the_object_and_the_folders_that_it_leaves_empty(objects: LocalObjects) -> None:
    put(objects, "a/b/one", b"1")
    put(objects, "a/c/two", b"2")
    objects.delete("a/b/one")
    objects.delete("a/b/one")
    objects.delete("never/was")
    assert files(objects) == ["a/c/two"]
    assert not (objects._root / "a" / "b").exists()
    objects.delete("a/c")  # a folder is no object
    assert files(objects) == ["a/c/two"]


KILLED_WRITER = """
import sys; from pathlib import Path; from store.objects import LocalObjects
objects = LocalObjects(Path(sys.argv[1]))
writer = objects.open_writer(sys.argv[2])
print("open", flush=True)
while True:
    writer.write(b"x" * 65536)
    print("wrote", flush=True)
"""


def test_a_writer_killed_in_the_middle_leaves_no_object_and_its_remains_go_at_the_next_start(
    objects: LocalObjects,
) -> None:
    put(objects, KEY, b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(objects._root), KEY], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(10):
        process.stdout.readline()
    with objects.open_writer("a/living") as living:
        living.write(b"not an orphan: ")
        LocalObjects(objects._root)
        assert len(files(objects)) == 3  # neither writer is disturbed by a start beside them
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        assert read(objects, KEY) == b"old"
        LocalObjects(objects._root)
        assert len(files(objects)) == 2
        living.write(b"still writing")
        living.commit()
    assert read(objects, "a/living") == b"not an orphan: still writing"
    assert files(objects) == ["a/living", KEY]


def test_an_object_cannot_lie_below_another_one(objects: LocalObjects) -> None:
    put(objects, "a", b"1")
    with pytest.raises(OSError):
        put(objects, "a/b", b"2")
    assert (read(objects, "a"), files(objects)) == (b"1", ["a"])


def test_writers_and_deleters_in_one_folder_do_not_disturb_one_another(objects: LocalObjects) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(100):
                key = f"shared/folder/{name}{number}"
                put(objects, key, b"x")
                objects.delete(key)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert files(objects) == []


MEMORY_PROBE = """
import resource, sys; from pathlib import Path; from store.objects import LocalObjects
objects = LocalObjects(Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with objects.open_writer("warm/up") as writer:
    writer.write(bytes(1 << 20)); writer.commit()
before = peak()
with objects.open_writer("big/one") as writer:
    for _ in range(256):
        writer.write(bytes(1 << 20))
    writer.commit()
objects.fetch("big/one", Path(sys.argv[1]) / "copy")
with objects.open_reader("big/one") as reader:
    assert sum(len(chunk) for chunk in reader) == 256 << 20
print(peak() - before)
"""


def test_memory_stays_flat_while_a_quarter_gigabyte_goes_in_and_out(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 * 1024  # KiB


def test_a_storage_url_names_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space & ä"
    store = object_store(folder.as_uri())
    put(store, KEY, b"x")
    assert (folder / KEY).read_bytes() == b"x"
    for url in ("file:relative", "/plain/path", "file://host/path"):
        with pytest.raises(ValueError, match="file:///absolute/folder"):
            object_store(url)
