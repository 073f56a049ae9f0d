"""Cancel, stop, loss and fencing: what happens to a job whose runner must not finish it."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from sqlalchemy import update

from store.contract import JobStatus
from store.identifiers import new_id
from store.layout import model_key
from store.tables import LOCAL_TENANT, Work
from store.work import claim, expire_leases, heartbeat, release_owner
from tests.worker.conftest import alive
from worker.lease import Lease, Timing
from worker.sweeper import Sweeper, remove_leftovers


def test_a_running_job_is_cancelled_at_once_and_its_runner_is_gone(bench):
    supervisor = bench.supervisor()
    id = bench.add_job("wait", seconds=60)
    bench.at_stage(id, "recover")
    pids = bench.runner_pids()
    assert pids
    bench.cancel(id)
    supervisor.wake()
    started = time.monotonic()
    job = bench.ended(id)
    assert job.status is JobStatus.cancelled and time.monotonic() - started < 3
    assert bench.events(id)[-2:] == ["job.cancelling", "job.cancelled"]
    bench.when(lambda: not any(alive(pid) for pid in pids) and not bench.scratch_folders())
    assert not bench.artifacts(id) and not bench.stored_keys(id)


def test_a_cancel_without_a_doorbell_is_seen_at_the_next_heartbeat(bench):
    bench.supervisor()
    id = bench.add_job("wait", seconds=60)
    bench.at_stage(id, "recover")
    bench.cancel(id)
    assert bench.ended(id, timeout_s=5).status is JobStatus.cancelled


def test_a_runner_that_ignores_the_request_to_end_is_killed(bench, monkeypatch):
    monkeypatch.setattr("worker.attempt.CANCEL_GRACE_S", 0.5)
    bench.supervisor()
    id = bench.add_job("ignore_sigterm")
    bench.at_stage(id, "intake")
    pids = bench.runner_pids()
    bench.cancel(id)
    assert bench.ended(id, timeout_s=5).status is JobStatus.cancelled
    bench.when(lambda: not any(alive(pid) for pid in pids))


def test_a_queued_job_is_cancelled_without_a_runner(bench):
    id = bench.add_job("succeed")
    bench.cancel(id)
    bench.supervisor()
    after = bench.add_job("succeed")
    assert bench.ended(after).status is JobStatus.succeeded
    assert bench.job(id).status is JobStatus.cancelled
    assert bench.events(id) == ["job.queued", "job.cancelled"]


def test_a_planned_stop_gives_the_job_back_without_a_loss_and_the_next_worker_finishes_it(bench):
    first = bench.supervisor()
    id = bench.add_job("wait", seconds=2)
    bench.at_stage(id, "recover")
    pids = bench.runner_pids()
    first.stop(10)
    job, work = bench.job(id), bench.work(id)
    assert (job.status, work.losses, work.lease_owner) == (JobStatus.queued, 0, None)
    assert not any(alive(pid) for pid in pids) and not bench.scratch_folders()
    bench.supervisor()
    job = bench.ended(id)
    assert (job.status, job.attempt) == (JobStatus.succeeded, 2)
    assert bench.events(id).count("job.succeeded") == 1


def test_a_lost_lease_kills_the_runner_and_writes_nothing(bench):
    bench.supervisor()
    id = bench.add_job("wait", seconds=60)
    bench.at_stage(id, "recover")
    pids = bench.runner_pids()
    with bench.database.transaction() as session:
        # Another worker has it now.
        session.execute(
            update(Work)
            .where(Work.id == id)
            .values(attempt=Work.attempt + 1, lease_owner="elsewhere", lease_expires_at=bench.database.now(session))
        )
        before = bench.job(id)
    bench.when(lambda: not any(alive(pid) for pid in pids), timeout_s=5)
    bench.when(lambda: not bench.scratch_folders())
    # The sweeper is the next to write: the other worker's lease has run out.
    job = bench.when(lambda: (job := bench.job(id)).version != before.version and job)
    assert "job.failed" not in bench.events(id) and not bench.stored_keys(id)
    assert bench.work(id).losses == 1
    assert job.status in (JobStatus.queued, JobStatus.running)
    bench.cancel(id)


def test_a_runner_killed_by_the_system_counts_as_a_loss_and_the_job_is_tried_again(bench):
    bench.supervisor()
    id = bench.add_job("wait", seconds=1)
    bench.at_stage(id, "recover")
    os.kill(bench.runner_pids()[-1], signal.SIGKILL)
    job = bench.ended(id)
    assert (job.status, job.attempt, bench.work(id).losses) == (JobStatus.succeeded, 2, 1)


def test_a_dead_supervisors_job_goes_to_the_next_one_after_its_lease(bench):
    id = bench.add_job("succeed")
    bench.supervisor().stop(10)
    bench.inspect_by_hand(id)
    dead = claim(bench.database, worker_id="dead", kinds={"job"}, queues={"cpu"}, lease_s=0.5)
    assert dead.id == id
    bench.supervisor()
    job = bench.ended(id)
    assert (job.status, job.attempt, bench.work(id).losses) == (JobStatus.succeeded, 2, 1)


def test_a_restart_of_the_same_data_folder_takes_its_work_back_at_once(bench):
    id = bench.add_job("succeed")
    bench.inspect_by_hand(id)
    claim(bench.database, worker_id="folder-1/job", kinds={"job"}, queues={"cpu"}, lease_s=3600)
    assert release_owner(bench.database, "folder-1/") == 1
    assert expire_leases(bench.database) == 0
    bench.supervisor(owner="folder-1/")
    job = bench.ended(id)
    assert (job.status, job.attempt) == (JobStatus.succeeded, 2)


def test_a_lease_that_the_database_cannot_renew_is_given_up_before_it_ends(bench, monkeypatch):
    id = bench.add_job("succeed")
    bench.inspect_by_hand(id)
    held = claim(bench.database, worker_id="w", kinds={"job"}, queues={"cpu"}, lease_s=1)

    def unreachable(*args, **options):
        raise ConnectionError("the database is away")

    monkeypatch.setattr("worker.lease.heartbeat", unreachable)
    monkeypatch.setattr("worker.lease.RETRY_S", 0.1)
    started = time.monotonic()
    with Lease(bench.database, held, Timing(lease_s=1.0, heartbeat_s=0.2)) as lease:
        bench.when(lambda: lease.lost, timeout_s=5)
        assert time.monotonic() - started < 1.0
        assert not lease.settle(lambda: pytest.fail("a lost lease writes nothing"))


def test_after_a_pause_of_the_machine_living_work_renews_its_lease_before_the_sweep(bench, monkeypatch):
    id = bench.add_job("succeed")
    bench.inspect_by_hand(id)
    held = claim(bench.database, worker_id="w", kinds={"job"}, queues={"cpu"}, lease_s=0.1)
    time.sleep(0.2)  # the lease runs out while everybody sleeps
    clock = itertools.chain([0.0], itertools.count(3600.0, 0.1))
    monkeypatch.setattr("worker.sweeper.time", SimpleNamespace(time=lambda: next(clock), monotonic=time.monotonic))
    rung, stopping = [], threading.Event()

    def ring() -> None:
        heartbeat(bench.database, held, 60)
        rung.append(True)

    sweeper = Sweeper(
        bench.database,
        bench.settings.data_dir,
        set,
        ring,
        lambda: None,
        sweep_s=0.05,
        lease_s=45,
        stopping=stopping,
    )
    sweeper.start()
    bench.when(lambda: next(clock) > 3602)
    stopping.set()
    sweeper.join()
    assert rung == [True] and bench.work(id).losses == 0


def test_a_living_worker_removes_objects_that_nothing_refers_to(bench, monkeypatch):
    monkeypatch.setattr("worker.housekeeper.ORPHAN_AGE_S", -60.0)
    key = model_key(LOCAL_TENANT, new_id("mdl"))
    with bench.objects.open_writer(key) as writer:
        writer.write(b"its row was never written")
        writer.commit()
    id = bench.add_model("succeed")
    bench.supervisor()
    bench.when(lambda: key not in bench.objects.keys(older_than_s=-60))
    assert bench.model(id).object_key in bench.objects.keys(older_than_s=-60)


def test_a_sweep_removes_folders_of_dead_runners_and_only_those(tmp_path):
    for name in ("runner-dead", "runner-alive", "runner-new", "other"):
        (tmp_path / name / "output").mkdir(parents=True)
    for name in ("runner-dead", "runner-alive"):
        os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path, {tmp_path / "runner-alive"}, older_than_s=60)
    remove_leftovers(tmp_path, {tmp_path / "runner-alive"}, older_than_s=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "runner-alive", "runner-new"]
