"""The same promises on one machine and as a fleet: every accepted job ends, once, whatever is killed."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from store.orphans import remove_orphans
from store.tables import Job, Work
from tests.stacks.stack import busy_runners, wait_for


def test_a_job_runs_and_its_artifacts_can_be_fetched(stack):
    job = stack.ended(stack.post_job("succeed"))
    assert (job["status"], job["attempt"], job["error"]) == ("succeeded", 1, None)
    content = stack.client.get(f"/v1/jobs/{job['id']}/artifacts/model.bin", follow_redirects=True).content
    assert content == b"smaller"


def test_many_jobs_at_once_each_run_once(stack):
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: stack.post_job("succeed"), range(8)))
    jobs = [stack.ended(id) for id in ids]
    assert {(job["status"], job["attempt"]) for job in jobs} == {("succeeded", 1)}


def test_a_killed_runner_is_one_loss_and_the_job_ends_once(stack):
    id = stack.post_job("wait", seconds=1.5)
    stack.at_stage(id, "recover")
    for pid in wait_for(lambda: busy_runners(stack.workers[0])):
        os.kill(pid, signal.SIGKILL)
    job = stack.ended(id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)


def test_a_killed_worker_that_comes_back_takes_its_work_up_at_once(stack):
    id = stack.post_job("wait", seconds=1.5)
    stack.at_stage(id, "recover")
    stack.workers[0].kill()
    stack.restart_worker()
    job = stack.ended(id)
    assert job["status"] == "succeeded" and job["attempt"] >= 2


def test_a_planned_stop_gives_the_job_back_without_a_loss_and_quickly(stack):
    id = stack.post_job("wait", seconds=60)
    stack.at_stage(id, "recover")
    started = time.monotonic()
    assert stack.workers[0].stop() == 0
    assert time.monotonic() - started < 15
    with stack.database.read() as session:
        row, job = session.get_one(Work, id), session.get_one(Job, id)
        assert (job.status, row.losses, row.lease_owner) == ("queued", 0, None)
    stack.restart_worker()
    assert stack.client.post(f"/v1/jobs/{id}/cancel").status_code == 200
    assert stack.ended(id)["status"] == "cancelled"


def test_cancel_at_any_moment_ends_the_job_once(stack):
    ids = [stack.post_job("wait", seconds=0.4) for _ in range(5)]
    for number, id in enumerate(ids):
        time.sleep(0.15 * number)
        answer = stack.client.post(f"/v1/jobs/{id}/cancel")
        assert answer.status_code in (200, 409), answer.text
    assert {stack.ended(id)["status"] for id in ids} <= {"cancelled", "succeeded"}
    wait_for(lambda: not busy_runners(stack.workers[0]))


def test_nothing_is_left_in_storage_that_no_row_refers_to(stack):
    id = stack.post_job("succeed")
    stack.ended(id)
    key = f"tenants/local/jobs/{id}/7/model.bin"
    with stack.objects.open_writer(key) as writer:
        writer.write(b"a stale attempt")
        writer.commit()
    assert remove_orphans(stack.database, stack.objects, older_than_s=-60) == 1
    assert key not in stack.objects.keys(older_than_s=-60)
