"""`Prefer: wait` and server-sent events: hundreds may wait in one process, and everybody else is answered as before."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api import streams
from api.polling import preferred_wait
from store.contract import WorkKind
from store.jobs import JobRepository
from store.tables import LOCAL_TENANT
from store.work import heartbeat
from tests.api.conftest import Service, pointers, problem

STREAM = {"Accept": "text/event-stream"}


@pytest.mark.parametrize(
    "header, seconds",
    [
        ("wait=10", 10),
        ("respond-async, wait=5; x=1", 5),
        ('WAIT = "7"', 7),
        ("wait=0", 0),
        ("wait=61", 60),
        ("wait=99999999999999999999", 60),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait", None),
        ("waits=3", None),
        ("", None),
        (None, None),
    ],
)
def test_seconds_to_wait_are_read_as_the_rfc_says_and_what_is_unreadable_is_ignored(header, seconds):
    assert preferred_wait(header) == seconds


def in_background(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_wait_ends_with_the_job(service):
    job = service.job()
    service.inspect_model()

    def finish_soon() -> None:
        time.sleep(0.3)
        service.finish_job()

    thread, started = in_background(finish_soon), time.monotonic()
    answer = service.client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"})
    thread.join()
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("succeeded", "wait=30")
    assert "retry-after" not in answer.headers
    assert 0.25 < time.monotonic() - started < 20


def test_wait_that_is_over_shows_the_job_as_it_is(service):
    job = service.job()
    answer = service.client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=1"})
    assert (answer.json()["status"], answer.headers["retry-after"]) == ("queued", "1")
    etag = {"If-None-Match": answer.headers["etag"]}
    same = service.client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=1", **etag})
    assert (same.status_code, same.headers["preference-applied"]) == (304, "wait=1")
    assert "preference-applied" not in service.client.get(f"/v1/jobs/{job['id']}").headers
    service.client.post(f"/v1/jobs/{job['id']}/cancel")
    ended = service.client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=60"})
    assert ended.json()["status"] == "cancelled"
    problem(service.client.get("/v1/jobs/job_nowhere", headers={"Prefer": "wait=60"}), 404, "not_found")


def test_job_that_is_deleted_while_it_is_waited_for_is_a_404(service):
    job, watcher = service.job(), service.services.watcher

    def delete_once_waited_for() -> None:
        while not watcher.waiting:
            time.sleep(0.01)
        with service.database.transaction() as session:
            jobs = JobRepository(session, LOCAL_TENANT)
            jobs.request_cancel(job["id"])
            jobs.delete(job["id"])

    thread = in_background(delete_once_waited_for)
    answer = service.client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"})
    thread.join()
    problem(answer, 404, "not_found")


def test_hundreds_wait_and_ordinary_requests_are_answered(service):
    """More waiters than threads (40) and pooled connections (64) together, in both ways of waiting."""
    job = service.job()
    url, many = f"{service.url}/v1/jobs/{job['id']}", 150
    watcher = service.services.watcher

    async def poll(client: httpx.AsyncClient) -> str:
        return (await client.get(url, headers={"Prefer": "wait=60"})).json()["status"]

    async def listen(client: httpx.AsyncClient) -> str:
        return (await client.get(f"{url}/events", headers=STREAM)).text

    async def everybody() -> tuple[list[str], list[str], list[float]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            polls = [asyncio.create_task(poll(client)) for _ in range(many)]
            listeners = [asyncio.create_task(listen(client)) for _ in range(many)]
            while watcher.waiting < 2 * many:
                await asyncio.sleep(0.05)
            took = []
            for _ in range(20):
                started = time.monotonic()
                assert (await client.get(url)).json()["status"] == "queued"
                took.append(time.monotonic() - started)
            assert watcher.waiting == 2 * many
            assert (await client.post(f"{url}/cancel")).status_code == 200
            return await asyncio.gather(*polls), await asyncio.gather(*listeners), took

    statuses, texts, took = asyncio.run(everybody())
    assert set(statuses) == {"cancelled"}
    assert len(set(texts)) == 1
    assert texts[0].count("event: job.cancelled") == 1
    assert sorted(took)[len(took) // 2] < 5
    assert watcher.waiting == 0


def test_waiters_that_hang_up_are_forgotten(service):
    job = service.job()
    url = f"/v1/jobs/{job['id']}"
    for headers, path in (({"Prefer": "wait=60"}, url),):
        with pytest.raises(httpx.ReadTimeout):
            service.client.get(path, headers=headers, timeout=0.3)
    deadline = time.monotonic() + 20
    while service.services.watcher.waiting and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.services.watcher.waiting == 0


def events_of(text: str) -> list[tuple[int, str, dict]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "id" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_stream_tells_every_event_once_and_ends_after_the_last(service):
    job = service.job()
    service.inspect_model()
    path = f"/v1/jobs/{job['id']}/events"
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(service.client.get, path, headers=STREAM)
        time.sleep(0.2)
        claim = service.claim(WorkKind.job)
        for stage in ("intake", "plan", "deliver"):
            heartbeat(service.database, claim, 60, stage=stage)
            time.sleep(0.15)
        service.client.post(f"/v1/jobs/{job['id']}/cancel")
        service.end_cancelled(claim)
        answer = stream.result(timeout=30)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    found = events_of(answer.text)
    assert [seq for seq, _, _ in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [kind for _, kind, _ in found] == [
        "job.queued", "job.running", "job.stage", "job.stage", "job.stage", "job.cancelling", "job.cancelled",
    ]  # fmt: skip
    listed = service.client.get(path, params={"order": "asc"}).json()["data"]
    assert [data for _, _, data in found] == listed
    goes_on = service.client.get(path, headers={**STREAM, "Last-Event-ID": "5"})
    assert [seq for seq, _, _ in events_of(goes_on.text)] == [6, 7]
    assert service.client.get(path, headers=STREAM, params={"after": 6}).text == goes_on.text.replace(
        goes_on.text[goes_on.text.index("id: 6") : goes_on.text.index("id: 7")], ""
    )
    assert service.client.get(path, headers={**STREAM, "Last-Event-ID": "7"}).status_code == 204


def test_silence_is_filled_with_pings(service, monkeypatch):
    monkeypatch.setattr(streams, "PING_EVERY_S", 0.1)
    job = service.job()
    with service.client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        while next(lines) != ": ping":
            pass
        service.client.post(f"/v1/jobs/{job['id']}/cancel")
        assert "event: job.cancelled" in list(lines)
    assert streams.MEDIA_TYPE in answer.headers["content-type"]


def test_unknown_job_and_unreadable_position_are_refused_before_the_stream_begins(service):
    problem(service.client.get("/v1/jobs/job_nowhere/events", headers=STREAM), 404, "not_found")
    job = service.job()
    refused = service.client.get(f"/v1/jobs/{job['id']}/events", headers={**STREAM, "Last-Event-ID": "x"})
    assert "/Last-Event-ID" in pointers(refused)
    listed = service.client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "application/json"})
    assert listed.json()["object"] == "list"


def test_stopping_process_sends_everybody_away(service: Service):
    job = service.job()
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(service.client.get, f"/v1/jobs/{job['id']}/events", headers=STREAM)
        poll = pool.submit(service.client.get, f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=60"})
        while service.services.watcher.waiting < 2:
            time.sleep(0.01)
        service.stop_waiting()
        assert events_of(stream.result(timeout=20).text)[-1][1] == "job.queued"
        assert poll.result(timeout=20).json()["status"] == "queued"
