"""What a fleet lives through: its queue gone, flushed or restarted, its processes killed or stopped for a while."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from store import tracing
from store.doorbell import QUEUES, celery_app
from store.tables import Work
from tests.databases import create_database
from tests.stacks.stack import Fleet, busy_runners, command_of, wait_for


def losses(fleet, id: str) -> int:
    with fleet.database.read() as session:
        return session.get_one(Work, id).losses


def holder(fleet, id: str) -> int:
    """The Celery child in whose slot the job runs."""
    with fleet.database.read() as session:
        owner = session.get_one(Work, id).lease_owner
    index = int(owner.rstrip("/").rpartition("-")[2])
    folder = f"jobs-{index}/"
    return next(
        child
        for child in fleet.celery()[1:]
        for runner in Path(f"/proc/{child}/task/{child}").parent.parent.glob("task/*/children")
        for pid in runner.read_text().split()
        if folder in Path(f"/proc/{pid}/cmdline").read_text()
    )


def test_no_process_of_celery_imports_torch(fleet):
    fleet.ended(fleet.post_job("succeed"))
    for pid in fleet.celery():
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in maps and "python" in maps


def test_a_killed_celery_child_is_replaced_and_its_job_taken_up_at_once(fleet):
    id = fleet.post_job("wait", seconds=1.5)
    fleet.at_stage(id, "recover")
    os.kill(holder(fleet, id), signal.SIGKILL)
    job = fleet.ended(id)
    assert (job["status"], losses(fleet, id)) == ("succeeded", 1)
    wait_for(lambda: len(fleet.celery()) == 3)


def test_a_killed_celery_process_is_started_again_and_takes_its_children_with_it(fleet):
    id = fleet.post_job("wait", seconds=1.5)
    fleet.at_stage(id, "recover")
    before = fleet.celery()
    os.kill(before[0], signal.SIGKILL)
    job = fleet.ended(id)
    assert (job["status"], losses(fleet, id)) == ("succeeded", 1)
    after = wait_for(lambda: len(now := fleet.celery()) == 3 and now)
    assert not set(before) & set(after)


def test_a_child_that_sleeps_past_its_lease_is_fenced_when_it_wakes(fleet):
    id = fleet.post_job("wait", seconds=1)
    fleet.at_stage(id, "recover")
    child = holder(fleet, id)
    os.kill(child, signal.SIGSTOP)
    try:
        wait_for(lambda: fleet.job(id)["attempt"] == 2)
        assert fleet.ended(id)["status"] == "succeeded"
    finally:
        os.kill(child, signal.SIGCONT)
    assert fleet.ended(fleet.post_job("succeed"))["status"] == "succeeded"
    assert (fleet.job(id)["attempt"], losses(fleet, id)) == (2, 1)


def test_a_job_is_accepted_at_once_and_runs_while_the_queue_is_down(fleet, own_redis):
    own_redis.kill()
    try:
        started = time.monotonic()
        id = fleet.post_job("succeed")
        assert time.monotonic() - started < 5
        assert fleet.ended(id)["status"] == "succeeded"
    finally:
        own_redis.start()
    assert fleet.ended(fleet.post_job("succeed"))["status"] == "succeeded"


def test_a_flushed_queue_loses_no_job(fleet, own_redis):
    ids = [fleet.post_job("wait", seconds=0.3) for _ in range(6)]
    own_redis.flush()
    assert {fleet.ended(id)["status"] for id in ids} == {"succeeded"}


def test_doorbells_without_end_run_each_job_once(fleet, own_redis):
    app = celery_app(own_redis.url())
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection.default_channel, auto_declare=False)
        ids = [fleet.post_job("succeed") for _ in range(2)]
        for number in range(60):
            queue = QUEUES[number % 2]
            app.send_task("pennyweight.doorbell", queue=queue, exchange="", routing_key=queue, producer=producer)
        jobs = [fleet.ended(id) for id in ids]
    assert {(job["status"], job["attempt"]) for job in jobs} == {("succeeded", 1)}


def test_two_workers_share_the_jobs_and_one_that_stops_for_good_is_replaced_by_the_other(fleet):
    second = fleet.add_worker()
    ids = [fleet.post_job("wait", seconds=2) for _ in range(6)]
    wait_for(lambda: any("jobs-" in command_of(pid) for pid in busy_runners(second)))
    second.kill()
    assert {fleet.ended(id)["status"] for id in ids} == {"succeeded"}
    assert {losses(fleet, id) for id in ids} <= {0, 1}


class _Collector(BaseHTTPRequestHandler):
    """Takes what OTLP over HTTP sends."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_children_of_celery_trace_the_jobs_that_they_do_and_send_all_before_they_end(
    own_redis, postgres_url, storage_url, tmp_path
):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        environment = {
            "PENNYWEIGHT_TRACING": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        }
        urls = (create_database(postgres_url), storage_url, own_redis.url())
        with contextlib.closing(Fleet(tmp_path, *urls, environment=environment)) as traced:
            id = traced.post_job("succeed")
            assert traced.ended(id)["status"] == "succeeded"
            traced.workers[0].stop()
        trace = tracing.trace_id(id).to_bytes(16, "big")
        assert any(trace in body and b"job" in body for body in collector.RequestHandlerClass.received)
        collector.shutdown()
