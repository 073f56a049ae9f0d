"""Waiting for a job goes on through overload, resets and restarts, and keeps to what the service asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pennyweight import ApiError, Client, JobFailed
from pennyweight import waiting as waiting_module
from pennyweight.errors import ServiceUnreachable

from tests.api.conftest import run_service

JOB = "job_01J9Z3K4M5N6P7Q8R9S0T1V2W3"


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(waiting_module, "time", clock)
    yield clock


Answer = httpx.Response | Exception


def client_of(*answers: Answer, then: Callable[[], Answer] | None = None) -> Client:
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        found = left.pop(0) if left else then() if then else None
        assert found is not None, "asked once too often"
        if isinstance(found, Exception):
            raise found
        return found

    return Client("http://127.0.0.1:9", transport=httpx.MockTransport(answer))


def job(status: str, **headers: str) -> httpx.Response:
    return httpx.Response(200, json={"id": JOB, "status": status, "error": None}, headers=headers)


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "d"}, headers=headers)


def test_wait_keeps_to_retry_after_of_overload_and_goes_on_after_resets(clock: Clock) -> None:
    seen: list[Any] = []
    client = client_of(
        job("running", **{"Retry-After": "2"}),
        refusal(429, "too_many_requests", **{"Retry-After": "7"}),
        refusal(503, "unavailable", **{"Retry-After": "5"}),
        httpx.ReadError("reset"),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("cut off"),
        job("succeeded"),
    )
    assert client.wait(JOB, on_change=seen.append)["status"] == "succeeded"
    assert [one["status"] for one in seen] == ["running", "succeeded"]
    assert clock.slept[:3] == [2.0, 7.0, 5.0]
    assert all(longer > shorter for shorter, longer in zip(clock.slept[3:], clock.slept[4:], strict=False))


def test_service_that_stays_away_is_told_after_two_minutes(clock: Clock) -> None:
    client = client_of(job("running"), then=lambda: httpx.ConnectError("refused"))
    with pytest.raises(ServiceUnreachable):
        client.wait(JOB)
    assert 120 <= clock.now - 1000 <= 120 + 2 * 15 * 1.25


def test_service_that_is_only_busy_is_waited_for_longer_and_a_timeout_ends_it(clock: Clock) -> None:
    client = client_of(then=lambda: refusal(429, "too_many_requests", **{"Retry-After": "30"}))
    with pytest.raises(ApiError) as caught:
        client.wait(JOB, timeout_s=600)
    assert (caught.value.code, caught.value.retry_after_s) == ("too_many_requests", 30)
    assert clock.now - 1000 == pytest.approx(600)


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (404, "not_found"), (500, "internal")])
def test_refusal_ends_the_wait_at_once(clock: Clock, status: int, code: str) -> None:
    with pytest.raises(ApiError):
        client_of(refusal(status, code)).wait(JOB)
    assert clock.slept == []


def test_job_that_was_cancelled_during_the_wait_is_no_success(clock: Clock) -> None:
    with pytest.raises(JobFailed) as caught:
        client_of(httpx.ReadTimeout("slow"), job("cancelled")).wait(JOB)
    assert caught.value.code == "cancelled"


def test_creation_waits_out_the_rate_and_tells_at_once_of_too_many_jobs(clock: Clock, monkeypatch) -> None:
    monkeypatch.setattr("pennyweight.client.time", clock)
    client = client_of(refusal(429, "too_many_requests", **{"Retry-After": "3"}), job("queued"))
    assert client.create_job("mdl_1", {})["status"] == "queued"
    assert clock.slept == [3.0]
    with pytest.raises(ApiError):
        client_of(refusal(429, "too_many_jobs", **{"Retry-After": "30"})).create_job("mdl_1", {})


class Broken(httpx.HTTPTransport):
    """The real service, behind a way on which these requests are lost."""

    def __init__(self, *lost: int) -> None:
        super().__init__()
        self._lost = lost
        self.asked = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.asked in self._lost:
            raise httpx.ReadError("the service restarts")
        return super().handle_request(request)


def test_wait_goes_on_where_the_connection_to_the_real_service_breaks(tmp_path, migrated, monkeypatch) -> None:
    monkeypatch.setattr(waiting_module, "_FIRST_PAUSE_S", 0.01)
    seen: list[str] = []
    with run_service(tmp_path / "data", migrated) as service:
        id = service.job(model=service.upload()["id"])["id"]
        service.inspect_model()

        def finish_at_first_sight(resource: Any) -> None:
            seen.append(resource["status"])
            if len(seen) == 1:
                service.finish_job()

        transport = Broken(1, 3, 4)
        with Client(service.url, transport=transport) as client:
            assert client.wait(id, on_change=finish_at_first_sight)["status"] == "succeeded"
    assert (seen, transport.asked) == (["queued", "succeeded"], 5)
