"""What creates is sent again after trouble that passes, under one key, so that nothing is created twice."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pennyweight import ApiError, Client
from pennyweight import client as client_module
from pennyweight.errors import ServiceUnreachable

from tests.api.conftest import HALF, run_service

SPEC = {"budget": HALF}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PAUSE_S", 0.001)


class Flaky(httpx.HTTPTransport):
    """The real service, behind a way that loses the first answers after the service has done its part."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses
        self.keys: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if request.method == "POST":
            self.keys.append(request.headers["idempotency-key"])
            answer.read()
            if len(self.keys) <= self.losses:
                raise httpx.ReadError("the connection was reset")
        return answer


def test_answer_that_is_lost_twice_still_means_one_job_and_one_file(tmp_path: Path, migrated: Path) -> None:
    path, seen = tmp_path / "net.pt", []
    path.write_bytes(bytes(3 << 20))
    transport = Flaky(losses=2)
    with (
        run_service(tmp_path / "data", migrated) as service,
        Client(service.url, transport=transport) as client,
    ):
        job = client.submit(path, SPEC, on_bytes=lambda sent, total: seen.append((sent, total)))
        assert [found["id"] for found in client.jobs()] == [job["id"]]
        assert len(transport.keys) == 3 and len(set(transport.keys)) == 1
        client.create_job(job["model"], HALF)
        assert len(set(transport.keys)) == 2
        assert len(service.stored_files()) == 1
    assert seen[-1] == (3 << 20, 3 << 20)
    assert max(sent for sent, _ in seen) == 3 << 20


def played(*statuses: int, code: str = "x") -> tuple[Client, list[str]]:
    left, asked = list(statuses), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["idempotency-key"])
        return httpx.Response(left.pop(0), json={"id": "job_1", "code": code, "detail": "d"})

    return Client("http://127.0.0.1:9", transport=httpx.MockTransport(answer)), asked


def test_overload_and_a_twin_in_flight_are_waited_out() -> None:
    client, asked = played(503, 409, 201, code="idempotency_in_flight")
    assert client.create_job("mdl_1", HALF)["id"] == "job_1"
    assert len(asked) == 3


@pytest.mark.parametrize("status", [400, 409, 422, 500, 507])
def test_refusal_is_told_at_once(status: int) -> None:
    client, asked = played(status)
    with pytest.raises(ApiError):
        client.create_job("mdl_1", HALF)
    assert len(asked) == 1


def test_trouble_that_lasts_is_told_in_the_end_and_a_service_that_is_not_there_at_once() -> None:
    client, asked = played(*[502] * 9)
    with pytest.raises(ApiError):
        client.create_job("mdl_1", HALF)
    assert len(asked) == client_module.CREATE_ATTEMPTS
    with Client("http://127.0.0.1:9") as nowhere, pytest.raises(ServiceUnreachable):
        nowhere.create_job("mdl_1", HALF)
