"""A request that creates, sent again under its Idempotency-Key, happens once and gets its first answer."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import select, update

from api.app import create_app
from store import idempotency
from store.database import Database
from store.idempotency import IdempotencyRepository, KeptAnswer, expire_idempotency_keys
from store.tables import LOCAL_TENANT, IdempotencyKey
from tests.api.conftest import CHECKPOINT, HALF, NO_MODEL, Service, listening, pointers, problem, spec

KEY = {"Idempotency-Key": "once"}
FILE = ("net.pt", CHECKPOINT)


def count(service: Service, what: str) -> int:
    return len(service.client.get(f"/v1/{what}", params={"limit": 100}).json()["data"])


def twice(service: Service, path: str, key: dict[str, str] = KEY, **sent) -> tuple[httpx.Response, httpx.Response]:
    first, second = (service.client.post(path, headers=key, **sent) for _ in range(2))
    assert first.status_code < 300, first.text
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert (second.status_code, second.json()) == (first.status_code, first.json())
    assert second.headers.get("location") == first.headers.get("location")
    return first, second


@pytest.mark.parametrize(
    "path, sent",
    [
        ("/v1/models", {"files": {"file": FILE}, "data": {"name": "n"}}),
        ("/v1/datasets", {"files": {"file": ("d.npz", b"PK")}, "data": {"scale": "16"}}),
        ("/v1/jobs", {"files": {"model": FILE, "dataset": ("d.npz", b"PK")}, "data": {"spec": spec()}}),
        ("/v1/uploads", {"json": {"filename": "a", "size": 9, "purpose": "dataset"}}),
    ],
)
def test_same_request_again_creates_nothing_and_leaves_no_file(service, path, sent):
    twice(service, path, **sent)
    files = len(service.stored_files())
    assert count(service, path.removeprefix("/v1/")) == 1
    changed = {**sent, "data": {**sent["data"], "name": "m"}} if "data" in sent and "model" in path else None
    if changed is not None:
        problem(service.client.post(path, headers=KEY, **changed), 422, "idempotency_key_reused")
    assert len(service.stored_files()) == files


def test_job_from_json_is_created_once_and_its_headers_come_back(service):
    body = {"model": service.upload()["id"], "budget": HALF}
    first, second = twice(service, "/v1/jobs", json=body)
    assert second.headers["etag"] == first.headers["etag"]
    spelt = service.client.post(
        "/jobs",
        headers={**KEY, "Content-Type": "application/json"},
        content=f'{{"budget": {{"flops": {{"max_ratio": 0.5}}}},  "model": "{body["model"]}"}}',
    )
    assert spelt.json()["id"] == first.json()["id"]
    assert count(service, "jobs") == 1


def test_answer_stays_the_first_one_when_the_world_has_moved_on(service):
    body = {"model": service.upload()["id"], "budget": HALF}
    first = service.client.post("/v1/jobs", headers=KEY, json=body).json()
    service.client.post(f"/v1/jobs/{first['id']}/cancel")
    assert service.client.delete(f"/v1/models/{body['model']}").status_code == 204
    again = service.client.post("/v1/jobs", headers=KEY, json=body)
    assert (again.status_code, again.json()) == (201, first)


def test_another_body_or_another_route_under_the_same_key_is_refused(service):
    job = service.job()
    body = {"model": job["model"], "budget": HALF}
    assert service.client.post("/v1/jobs", headers=KEY, json=body).status_code == 201
    refused = service.client.post("/v1/jobs", headers=KEY, json={**body, "seed": 1})
    assert "new key" in problem(refused, 422, "idempotency_key_reused")["detail"]
    problem(
        service.client.post("/v1/jobs", headers=KEY, files={"model": FILE}, data={"spec": spec()}),
        422,
        "idempotency_key_reused",
    )
    problem(service.client.post("/v1/models", headers=KEY, files={"file": FILE}), 422, "idempotency_key_reused")
    problem(service.client.post("/v1/plans", headers=KEY, json=body), 422, "idempotency_key_reused")
    service.client.post(f"/v1/jobs/{job['id']}/cancel")
    problem(service.client.post(f"/v1/jobs/{job['id']}/retry", headers=KEY), 422, "idempotency_key_reused")
    assert (count(service, "jobs"), count(service, "models"), len(service.stored_files())) == (2, 1, 1)


def test_retry_and_completed_upload_happen_once(service):
    job = service.job()
    service.client.post(f"/v1/jobs/{job['id']}/cancel")
    twice(service, f"/v1/jobs/{job['id']}/retry")
    assert count(service, "jobs") == 2
    announced = {"filename": "d.npz", "size": 2, "purpose": "dataset"}
    upload = service.client.post("/v1/uploads", json=announced).json()
    etag = service.client.put(upload["parts"][0]["url"], content=b"PK").headers["etag"]
    done = {"parts": [{"number": 1, "etag": etag}]}
    twice(service, f"/v1/uploads/{upload['id']}/complete", {"Idempotency-Key": "done"}, json=done)
    assert count(service, "datasets") == 1


def test_plan_is_made_once_and_a_repeated_request_waits_for_it(service, monkeypatch):
    model = service.upload()["id"]
    service.inspect_model()
    body = {"model": model, "budget": HALF}
    monkeypatch.setattr("api.plans.WAIT_S", 0.05)
    first = service.client.post("/v1/plans", headers=KEY, json=body)
    assert (first.status_code, first.json()["status"]) == (202, "planning")
    service.finish_plan()
    again = service.client.post("/v1/plans", headers=KEY, json=body)
    assert (again.status_code, again.json()["status"]) == (200, "ready")
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"


def test_refused_request_gives_its_key_back(service):
    nothing = {"model": NO_MODEL, "budget": HALF}
    problem(service.client.post("/v1/jobs", headers=KEY, json=nothing), 404, "not_found")
    problem(service.client.post("/v1/models", headers=KEY, files={"file": ("a", b"")}), 422, "empty_file")
    body = {"model": service.upload()["id"], "budget": HALF}
    assert service.client.post("/v1/jobs", headers=KEY, json=body).status_code == 201


def test_request_that_breaks_in_the_middle_gives_its_key_back_and_leaves_nothing(service, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("store.jobs.touch", broken)
        form = {"files": {"model": FILE}, "data": {"spec": spec()}}
        problem(service.client.post("/v1/jobs", headers=KEY, **form), 500, "internal")
    assert (service.stored_files(), count(service, "models")) == ([], 0)
    twice(service, "/v1/jobs", **form)


def test_key_of_one_tenant_says_nothing_to_another(serve):
    with serve(require_keys=True) as service:
        mine, other = ({"Authorization": f"Bearer {service.key(name)}", **KEY} for name in ("mine", "other"))
        ids = {service.client.post("/v1/models", headers=h, files={"file": FILE}).json()["id"] for h in (mine, other)}
        assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9", "tab\there"])
def test_key_must_be_printable_and_not_too_long(service, key):
    answer = service.client.post("/v1/models", headers={"Idempotency-Key": key.encode("latin-1")}, files={"file": FILE})
    assert "/Idempotency-Key" in pointers(answer)
    assert service.client.post("/v1/models", headers={"Idempotency-Key": "x" * 255}, files={"file": FILE}).is_success


def test_while_the_first_is_at_work_the_second_is_told_to_wait(service):
    body = {"filename": "a", "size": 9, "purpose": "dataset"}
    with service.database.transaction() as session:
        IdempotencyRepository(session, LOCAL_TENANT).reserve("once", "POST /uploads", None, "first")
    waiting = service.client.post("/v1/uploads", headers=KEY, json=body)
    problem(waiting, 409, "idempotency_in_flight")
    assert waiting.headers["retry-after"] == "1"
    with service.database.transaction() as session:
        IdempotencyRepository(session, LOCAL_TENANT).release("once", "first")
    twice(service, "/v1/uploads", json=body)


def test_reservation_of_a_killed_process_ends_by_itself(service):
    with service.database.transaction() as session:
        IdempotencyRepository(session, LOCAL_TENANT).reserve("once", "POST /uploads", None, "killed")
        past = service.database.now(session) - timedelta(seconds=1)
        session.execute(update(IdempotencyKey).values(reserved_until=past))
    twice(service, "/v1/uploads", json={"filename": "a", "size": 9, "purpose": "dataset"})


def test_two_processes_create_once_whatever_the_timing(service, monkeypatch):
    """Two applications over one database, and no reservation to keep them apart: the transaction alone decides."""
    monkeypatch.setattr(idempotency, "RESERVED_S", -1.0)
    model = service.upload()["id"]
    other = Database(service.settings.resolved_database_url)
    app = create_app(service.settings, other, service.objects)
    with listening(app) as url, httpx.Client(base_url=url, timeout=30) as second, ThreadPoolExecutor(8) as pool:
        for round in range(5):
            start = threading.Barrier(8)

            def send(index: int, round: int = round, start: threading.Barrier = start) -> httpx.Response:
                start.wait()
                client = (service.client, second)[index % 2]
                body = {"model": model, "budget": HALF, "seed": round}
                return client.post("/v1/jobs", headers={"Idempotency-Key": f"round {round}"}, json=body)

            answers = list(pool.map(send, range(8)))
            assert {answer.status_code for answer in answers} == {201}
            assert len({answer.json()["id"] for answer in answers}) == 1
            assert Counter("idempotent-replayed" in answer.headers for answer in answers) == {True: 7, False: 1}
    other.dispose()
    assert count(service, "jobs") == 5


def test_keys_are_forgotten_after_a_day(service):
    body = {"filename": "a", "size": 9, "purpose": "dataset"}
    first, _ = twice(service, "/v1/uploads", json=body)
    assert expire_idempotency_keys(service.database) == 0
    with service.database.transaction() as session:
        row = session.scalars(select(IdempotencyKey)).one()
        assert timedelta(hours=23.9) < row.expires_at - row.created_at < timedelta(hours=24.1)
        session.execute(update(IdempotencyKey).values(expires_at=service.database.now(session)))
    anew = service.client.post("/v1/uploads", headers=KEY, json={**body, "size": 10})
    assert (anew.status_code, anew.json()["id"] != first.json()["id"]) == (201, True)
    with service.database.transaction() as session:
        session.execute(update(IdempotencyKey).values(expires_at=service.database.now(session)))
    assert (expire_idempotency_keys(service.database), expire_idempotency_keys(service.database)) == (1, 0)


def test_a_late_winner_finds_the_answer_that_was_kept_before(service):
    with service.database.transaction() as session:
        keys = IdempotencyRepository(session, LOCAL_TENANT)
        assert keys.reserve("k", "POST /jobs", None, "slow") is None
        assert keys.settle("k", "POST /jobs", "f") is None
        keys.keep("k", "POST /jobs", "f", KeptAnswer(201, {}, "{}", "job_1"))
        keys.release("k", "slow")
        assert keys.settle("k", "POST /jobs", "f") == KeptAnswer(201, {}, "{}", "job_1")
