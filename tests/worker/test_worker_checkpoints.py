"""A job whose process dies goes on from its last checkpoint, wherever it is tried next, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from store.checkpoints import drop_checkpoints
from store.claims import checkpoint_of
from store.contract import JobStatus
from store.errors import StorageUnavailable
from store.work import claim, lose
from worker.keeper import CheckpointKeeper
from worker.protocol import CHECKPOINT_FILE, CheckpointMessage, ResumedMessage


@pytest.fixture
def bench(bench, monkeypatch):
    monkeypatch.setattr("store.waiting.LOSS_BACKOFF_S", 0.1)
    bench.settings = bench.settings.model_copy(update={"checkpoint_interval_s": 0.05, "checkpoint_grace_s": 5})
    return bench


def test_a_runner_killed_again_and_again_costs_the_steps_since_its_last_checkpoint_and_no_more(bench):
    bench.supervisor()
    id = bench.add_job("train", steps=100, every=2, step_s=0.03)
    for attempt in range(1, 4):
        bench.when(lambda attempt=attempt: bench.job(id).checkpoint_attempt == attempt)
        for pid in bench.runner_pids():
            os.kill(pid, signal.SIGKILL)
    job = bench.ended(id, timeout_s=60)
    assert (job.status, job.attempt) == (JobStatus.succeeded, 4), job.error
    assert job.result["provenance"]["began"] >= 6 and job.result["provenance"]["ended"] == 100
    assert job.resumed_from["attempt"] == 3 and job.resumed_from["number"] == job.result["provenance"]["began"]
    assert bench.events(id).count("job.resumed") == 3
    bench.when(lambda: bench.job(id).checkpoint_key is None and not bench.stored_keys(id))


def test_the_same_end_twice_without_a_checkpoint_between_ends_the_job(bench):
    bench.supervisor()
    id = bench.add_job("train", steps=20, every=5, die_at=12)
    job = bench.ended(id)
    assert (job.attempt, job.error["code"]) == (2, "worker_lost")
    assert "SIGSEGV twice in a row" in job.error["message"]
    bench.when(lambda: bench.job(id).checkpoint_key is None and not bench.stored_keys(id))


def test_a_process_of_the_runners_that_is_killed_counts_as_the_runner_killed(bench):
    bench.supervisor()
    job = bench.ended(bench.add_job("lose_a_process"))
    assert (job.attempt, job.error["code"]) == (2, "worker_lost")
    assert "SIGKILL twice in a row" in job.error["message"]


def test_what_a_runner_wrote_just_before_it_died_is_stored_after_its_death(bench, monkeypatch):
    monkeypatch.setattr("worker.keeper.LEAST_GAP_S", 60.0)  # only the first would be stored while it runs
    bench.settings = bench.settings.model_copy(update={"checkpoint_interval_s": 60})
    bench.supervisor()
    id = bench.add_job("train", steps=20, every=5, die_at=16, at_first_only=True)
    job = bench.ended(id)
    assert (job.status, job.result["provenance"]["began"]) == (JobStatus.succeeded, 15), job.error


def test_a_planned_stop_waits_for_a_checkpoint_and_the_next_worker_goes_on_there(bench):
    first = bench.supervisor()
    id = bench.add_job("train", steps=30, step_s=0.1, silent=True)
    bench.at_stage(id, "recover")
    bench.when(lambda: (bench.job(id).progress or {"fraction": 0})["fraction"] > 0.11)
    assert bench.job(id).checkpoint_key is None
    first.stop(10)
    job = bench.job(id)
    assert (job.status, bench.work(id).losses) == (JobStatus.queued, 0)
    assert job.checkpoint_key is not None and bench.stored_keys(id) == [job.checkpoint_key]
    bench.supervisor()
    job = bench.ended(id)
    assert (job.status, job.attempt) == (JobStatus.succeeded, 2)
    assert 0 < job.result["provenance"]["began"] < 30


def test_a_planned_stop_waits_no_longer_than_its_grace(bench):
    bench.settings = bench.settings.model_copy(update={"checkpoint_grace_s": 0.5})
    first = bench.supervisor()
    id = bench.add_job("train", steps=2, step_s=60)
    bench.at_stage(id, "recover")
    started = time.monotonic()
    first.stop(10)
    assert time.monotonic() - started < 5
    assert (bench.job(id).status, bench.job(id).checkpoint_key) == (JobStatus.queued, None)


def test_a_planned_stop_ends_in_time_though_a_dead_runners_checkpoint_is_still_being_stored(bench, monkeypatch):
    monkeypatch.setattr("worker.attempt.LEAVING_S", 1.0)
    storing, go_on = threading.Event(), threading.Event()

    def hangs(keeper, source, key):
        storing.set()
        go_on.wait(40)

    monkeypatch.setattr("worker.keeper.CheckpointKeeper._copy", hangs)
    monkeypatch.setattr("worker.keeper.END_S", 0.2)
    bench.settings = bench.settings.model_copy(update={"stop_timeout_s": 3.0})
    supervisor = bench.supervisor()
    id = bench.add_job("train", steps=20, every=5, die_at=7)
    assert storing.wait(20)
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 10
    assert bench.job(id).status is JobStatus.queued
    go_on.set()


def test_a_checkpoint_that_is_gone_costs_its_steps_and_nothing_else(bench):
    first = bench.supervisor()
    id = bench.add_job("train", steps=60, silent=True)
    bench.at_stage(id, "recover")
    first.stop(10)
    bench.objects.delete(bench.job(id).checkpoint_key)
    bench.supervisor()
    job = bench.ended(id)
    assert (job.status, job.result["provenance"]["began"], job.resumed_from) == (JobStatus.succeeded, 0, None)


def test_a_link_is_no_checkpoint(bench):
    bench.supervisor()
    id = bench.add_job("checkpoint_trick", target=str(bench.settings.data_dir / "pennyweight.db"))
    assert bench.ended(id).status is JobStatus.succeeded
    assert not bench.stored_keys(id)


# --- the keeper by itself ---


class Kept:
    """A keeper on a claim, and a folder in which a test plays the runner."""

    def __init__(self, bench, folder, **options) -> None:
        id = bench.add_job("succeed")
        bench.inspect_by_hand(id)
        self.claim = claim(bench.database, worker_id="w", kinds={"job"}, queues={"cpu"}, lease_s=60)
        self.bench = bench
        self.path = folder / CHECKPOINT_FILE
        self.path.parent.mkdir(parents=True)
        options = {"limit_bytes": 2**20, "interval_s": 0.01, **options}
        objects = options.pop("objects", bench.objects)
        self.keeper = CheckpointKeeper(bench.database, objects, self.claim, folder, **options)

    def write(self, content: bytes) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_bytes(content)
        beside.replace(self.path)
        self.keeper.hear(CheckpointMessage(state="written"))

    def content(self) -> bytes | None:
        key = self.bench.job(self.claim.id).checkpoint_key
        if key is None:
            return None
        with self.bench.objects.open_reader(key) as reader:
            return reader.read()


def test_only_the_latest_file_is_kept_and_the_one_before_goes(bench, tmp_path):
    kept = Kept(bench, tmp_path / "runner")
    with kept.keeper as keeper:
        for number in range(20):
            kept.write(b"state %d" % number)
        keeper.flush(10)
        assert kept.content() == b"state 19"
        assert 1 <= keeper.recorded <= 20 and keeper.written == 20
        recorded = keeper.recorded
        keeper.flush(10)
        assert keeper.recorded == recorded
    assert len(bench.stored_keys(kept.claim.id)) == 1


def test_a_file_larger_than_a_task_may_write_is_not_taken(bench, tmp_path):
    kept = Kept(bench, tmp_path / "runner", limit_bytes=100)
    with kept.keeper as keeper:
        kept.write(bytes(101))
        keeper.flush(5)
        assert keeper.recorded == 0 and kept.content() is None
        kept.write(bytes(100))
        keeper.flush(5)
        assert kept.content() == bytes(100)


def test_a_stale_attempt_replaces_nothing_and_takes_its_own_object_away(bench, tmp_path):
    stale = Kept(bench, tmp_path / "stale")
    lose(bench.database, stale.claim)
    with stale.keeper as keeper:
        stale.write(b"of yesterday")
        keeper.flush(5)
        assert keeper.recorded == 0
    assert bench.job(stale.claim.id).checkpoint_key is None and not bench.stored_keys(stale.claim.id)


class SlowObjects:
    """An object store whose writers wait until they are let go, or that is away."""

    def __init__(self, objects) -> None:
        self._objects = objects
        self.go_on = threading.Event()
        self.away = False

    def open_writer(self, key):
        self.go_on.wait(10)
        if self.away:
            raise StorageUnavailable("It does not answer.")
        return self._objects.open_writer(key)

    def __getattr__(self, name):
        return getattr(self._objects, name)


def test_slow_storage_holds_up_neither_the_reading_of_messages_nor_the_end(bench, tmp_path):
    objects = SlowObjects(bench.objects)
    kept = Kept(bench, tmp_path / "runner", objects=objects)
    started = time.monotonic()
    for number in range(100):
        kept.write(b"state %d" % number)
    kept.keeper.flush(0.3)
    kept.keeper.close()
    assert time.monotonic() - started < 5 and kept.keeper.recorded == 0
    objects.go_on.set()


def test_storage_that_comes_back_gets_the_checkpoint_after_all(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.keeper.RETRY_S", 0.05)
    objects = SlowObjects(bench.objects)
    objects.away = True
    objects.go_on.set()
    kept = Kept(bench, tmp_path / "runner", objects=objects)
    with kept.keeper:
        kept.write(b"state")
        time.sleep(0.2)
        assert kept.content() is None
        objects.away = False
        bench.when(lambda: kept.content() == b"state")


def test_a_fetched_checkpoint_is_not_stored_again_and_is_said_to_be_gone_on_from(bench, tmp_path):
    first = Kept(bench, tmp_path / "first")
    with first.keeper as keeper:
        first.write(b"state 1")
        keeper.flush(5)
    stored = bench.job(first.claim.id)
    second = replace(first.claim, checkpoint=checkpoint_of(stored))
    folder = tmp_path / "second"
    (folder / "checkpoint").mkdir(parents=True)
    with CheckpointKeeper(bench.database, bench.objects, second, folder, limit_bytes=100, interval_s=1) as keeper:
        keeper.fetch()
        assert (folder / CHECKPOINT_FILE).read_bytes() == b"state 1"
        keeper.hear(ResumedMessage(step="recover_0/training", number=7))
        keeper.hear(ResumedMessage(step="something else"))
        bench.when(lambda: bench.job(second.id).resumed_from)
        keeper.flush(5)
        assert keeper.recorded == 0
    assert bench.job(second.id).resumed_from["number"] == 7 and bench.events(second.id).count("job.resumed") == 1
    bench.cancel(second.id)
    lose(bench.database, second)
    assert drop_checkpoints(bench.database, bench.objects) == 1
