"""Trouble of the worker's own is not held against the work: it waits, and is done once the trouble is over."""

from __future__ import annotations

import errno
import os
import resource
import time

import pytest

from store.contract import InspectionStatus, JobStatus
from store.tables import Worker
from store.waiting import TROUBLE_LIMIT
from tests.worker.conftest import SCRIPTED_COMMANDS
from worker.attempt import LONGEST_TROUBLE_DELAY_S, trouble_delay_s
from worker.process import RunnerProcess, RunnerSpec
from worker.protocol import ResultMessage, Task
from worker.sandbox import Policy
from worker.supervisor import Slot

BACKOFF_S = (0.2, 0.4, 0.8, 1.0)


class FullDisk:
    """Stands before a function and fails like a full disk until it is over; `calls` are the times of the failures."""

    def __init__(self, function) -> None:
        self.function, self.over, self.calls = function, False, []

    def __call__(self, *arguments):
        if not self.over:
            self.calls.append(time.monotonic())
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.function(*arguments)


def full_disk(bench, monkeypatch, where: str) -> FullDisk:
    if where == "runner":
        disk = FullDisk(Slot._take_runner)
        monkeypatch.setattr(Slot, "_take_runner", lambda slot: disk(slot))
    else:
        disk = FullDisk(bench.objects.fetch)
        monkeypatch.setattr(bench.objects, "fetch", disk)
    return disk


@pytest.mark.parametrize("where", ["runner", "fetch"])
def test_jobs_wait_without_a_loss_while_the_disk_is_full_and_finish_when_it_is_not(bench, monkeypatch, where):
    monkeypatch.setattr("worker.attempt.TROUBLE_DELAY_S", 0.1)
    monkeypatch.setattr("worker.supervisor.BACKOFF_S", BACKOFF_S)
    disk = full_disk(bench, monkeypatch, where)
    ids = [bench.add_job("succeed") for _ in range(5)]
    for id in ids:
        bench.inspect_by_hand(id)
    bench.supervisor()
    bench.when(lambda: len(disk.calls) >= 4)
    gaps = [later - earlier for earlier, later in zip(disk.calls, disk.calls[1:], strict=False)]
    assert all(gap >= backoff for gap, backoff in zip(gaps, BACKOFF_S, strict=False)), gaps
    bench.when(lambda: all(bench.job(id).status is JobStatus.queued for id in ids))
    disk.over = True
    assert {bench.ended(id).status for id in ids} == {JobStatus.succeeded}
    assert sum(bench.job(id).attempt for id in ids) == len(ids) + len(disk.calls)
    assert {bench.work(id).losses for id in ids} == {0}


def test_an_inspection_waits_as_well(bench, monkeypatch):
    monkeypatch.setattr("worker.attempt.TROUBLE_DELAY_S", 0.1)
    monkeypatch.setattr("worker.supervisor.BACKOFF_S", BACKOFF_S)
    disk = full_disk(bench, monkeypatch, "fetch")
    id = bench.add_model("succeed")
    bench.supervisor()
    bench.when(lambda: len(disk.calls) >= 4)  # one more than the losses that end an inspection
    assert bench.model(id).status is InspectionStatus.inspecting
    disk.over = True
    assert bench.inspected(id).status is InspectionStatus.ready
    assert bench.work(id).losses == 0


def test_the_same_work_waits_longer_each_time_up_to_a_limit():
    delays = [trouble_delay_s(troubles) for troubles in range(40)]
    assert delays[:4] == [2, 4, 8, 16]
    assert delays == sorted(delays) and delays[-1] == LONGEST_TROUBLE_DELAY_S


def test_trouble_that_never_ends_fails_the_job_with_words(bench, monkeypatch):
    monkeypatch.setattr("worker.attempt.TROUBLE_DELAY_S", 0.01)
    monkeypatch.setattr("worker.attempt.LONGEST_TROUBLE_DELAY_S", 0.01)
    monkeypatch.setattr("worker.supervisor.BACKOFF_S", (0.01,))
    full_disk(bench, monkeypatch, "fetch")
    id = bench.add_job("succeed")
    bench.inspect_by_hand(id)
    bench.supervisor()
    job = bench.ended(id)
    assert (job.attempt, job.error["code"], job.error["retryable"]) == (TROUBLE_LIMIT, "internal", True)
    assert "No space left on device" in job.error["message"] and f"{TROUBLE_LIMIT} times" in job.error["message"]


def test_a_file_that_is_gone_ends_its_work_at_once_with_words(bench):
    job_id, waiting = bench.add_job("succeed"), bench.add_model("succeed")
    bench.inspect_by_hand(job_id)
    for model in (bench.model(bench.job(job_id).model_id), bench.model(waiting)):
        bench.objects.delete(model.object_key)
    bench.supervisor()
    job = bench.ended(job_id)
    assert (job.status, job.attempt, job.error["code"]) == (JobStatus.failed, 1, "internal")
    assert job.model_id in job.error["message"] and "Upload it again" in job.error["message"]
    model = bench.inspected(waiting)
    assert model.status is InspectionStatus.rejected and waiting in model.error["message"]
    assert "tenants/" not in job.error["message"] + model.error["message"]


def test_a_running_job_shows_what_its_stage_is_doing(bench):
    bench.supervisor()
    id = bench.add_job("wait", seconds=60)

    def shown() -> str | None:
        stages = (bench.job(id).progress or {}).get("stages", [])
        return next((stage["message"] for stage in stages if stage["name"] == "recover"), None)

    assert bench.when(shown).startswith("Step ")
    bench.cancel(id)


def test_a_living_worker_says_so_again_and_again_even_while_it_works(bench, monkeypatch):
    monkeypatch.setattr("worker.sweeper.SIGN_OF_LIFE_EVERY_S", 0.1)
    supervisor = bench.supervisor()

    def seen():
        with bench.database.read() as session:
            return max((row.seen_at for row in session.query(Worker)), default=None)

    bench.when(seen)
    bench.at_stage(bench.add_job("wait", seconds=60), "recover")
    first = seen()
    second = bench.when(lambda: (now := seen()) > first and now)
    bench.when(lambda: seen() > second)
    supervisor.stop(10)
    last = seen()
    time.sleep(0.5)
    assert seen() == last


def test_a_runner_is_heard_through_descriptors_above_a_thousand(tmp_path):
    tmp_path.chmod(0o711)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard >= 0 else 4096, hard))
    held = [os.open("/dev/null", os.O_RDONLY)]
    try:
        while held[-1] < 1100:
            held.append(os.dup(held[-1]))
        policy = Policy(kind="process", uid=None, memory_bytes=2**32, file_bytes=2**32, gpu=False, hidden=())
        with RunnerProcess(RunnerSpec(policy, tmp_path, threads=1, commands=SCRIPTED_COMMANDS)) as runner:
            assert runner._messages > 1100
            runner.start(Task(kind="catalogue", threads=1, cpu_seconds=60))
            messages = []
            deadline = time.monotonic() + 30
            while runner.talking and time.monotonic() < deadline:
                messages += runner.read(1)
        assert [message.result["version"] for message in messages if isinstance(message, ResultMessage)] == ["test"]
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
