"""Webhooks end to end: an endpoint, a job, a real receiver, and Standard Webhooks' own verifier."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from store import deliveries
from store.deliveries import Outcome, claim_deliveries, expire_deliveries, settle
from store.tables import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from tests.api.conftest import HALF, Service, pointers, problem, spec
from tests.api.webhook_receiver import LOCAL
from worker.pinned_http import post
from worker.webhooks import WebhookSender

ALLOWED = {"webhook_allow": "127.0.0.0/8"}


@pytest.fixture
def service(serve) -> Iterator[Service]:
    with serve(**ALLOWED) as service:
        yield service


@contextmanager
def sending(service: Service, count: int = 1) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(WebhookSender(service.database, service.settings.webhook_policy))
        yield


def endpoint(service: Service, url: str, **fields) -> dict:
    answer = service.client.post("/v1/webhook_endpoints", json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def sent_to(service: Service, id: str) -> list[dict]:
    return service.client.get(f"/v1/webhook_endpoints/{id}/deliveries").json()["data"]


def settled(service: Service, id: str, count: int = 1) -> list[dict]:
    deadline = time.monotonic() + 30
    while True:
        found = sent_to(service, id)
        if len(found) == count and all(one["status"] != "pending" for one in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def cancelled_job(service: Service, **options) -> dict:
    job = service.job(**options)
    assert service.client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    return job


def due_now(service: Service) -> None:
    with service.database.transaction() as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=service.database.now(session)))


def test_message_verifies_with_the_published_library_and_says_what_happened(service, receiver):
    made = endpoint(service, receiver.url, events=["job.queued", "job.cancelled"], description="ours")
    with sending(service):
        job = cancelled_job(service, name="n", labels={"a": "b"})
        receiver.wait(2)
        found = settled(service, made["id"], 2)
    for headers, body in receiver.seen:
        payload = Webhook(made["secret"]).verify(body, headers)
        assert set(payload) == {"type", "timestamp", "data"}
        assert payload["data"]["id"] == job["id"]
        assert headers["content-type"] == "application/json"
        with pytest.raises(WebhookVerificationError):
            Webhook(made["secret"]).verify(body + b" ", headers)
    assert {json.loads(body)["type"] for _, body in receiver.seen} == {"job.queued", "job.cancelled"}
    assert {one["id"] for one in found} == {headers["webhook-id"] for headers, _ in receiver.seen}
    assert {(one["status"], one["attempts"], one["last_status"]) for one in found} == {("delivered", 1, 204)}
    last = next(one for one in found if one["type"] == "job.cancelled")["payload"]["data"]
    assert (last["status"], last["name"], last["labels"], last["error"]) == ("cancelled", "n", {"a": "b"}, None)


def test_endpoints_are_made_seen_changed_and_deleted_and_their_secret_is_shown_on_request_only(service, receiver):
    made = endpoint(service, receiver.url)
    path = f"/v1/webhook_endpoints/{made['id']}"
    assert made["events"] == ["job.succeeded", "job.failed", "job.cancelled"]
    shown = service.client.get(path).json()
    assert "secret" not in shown and {**shown, "secret": made["secret"]} == made
    assert service.client.get(f"{path}/secret").json() == {"secret": made["secret"]}
    assert [one["id"] for one in service.client.get("/v1/webhook_endpoints").json()["data"]] == [made["id"]]
    changed = service.client.patch(path, json={"events": ["job.failed"], "status": "disabled"}).json()
    assert (changed["events"], changed["status"], changed["url"]) == (["job.failed"], "disabled", made["url"])
    assert service.client.patch(path, json={"status": "active"}).json()["disabled_reason"] is None
    assert "/url" in pointers(service.client.patch(path, json={"url": "ftp://x"}))
    assert service.client.delete(path).status_code == 204
    problem(service.client.get(path), 404, "not_found")
    own = "whsec_" + "A" * 40
    assert endpoint(service, receiver.url, secret=own)["secret"] == own
    refused = service.client.post("/v1/webhook_endpoints", json={"url": receiver.url, "secret": "whsec_short"})
    assert "/secret" in pointers(refused)
    key = {"Idempotency-Key": "k"}
    twice = [
        service.client.post("/v1/webhook_endpoints", json={"url": receiver.url}, headers=key).json()["id"]
        for _ in range(2)
    ]
    assert twice[0] == twice[1]


def test_job_can_bring_its_own_webhook_whose_secret_stays_out_of_sight(service, receiver):
    secret = "whsec_" + "B" * 40
    hook = {"url": receiver.url, "secret": secret}
    with sending(service):
        form = {"files": {"model": ("net.pt", b"weights")}, "data": {"spec": spec(webhook=hook)}}
        made = service.client.post("/v1/jobs", **form)
        assert made.status_code == 201 and secret not in made.text
        job = made.json()
        other = cancelled_job(service, model=job["model"])
        service.client.post(f"/v1/jobs/{job['id']}/cancel")
        receiver.wait(1)
        retried = service.client.post(f"/v1/jobs/{job['id']}/retry").json()
        service.client.post(f"/v1/jobs/{retried['id']}/cancel")
        receiver.wait(2)
    assert [Webhook(secret).verify(body, h)["data"]["id"] for h, body in receiver.seen] == [job["id"], retried["id"]]
    assert job["request"]["webhook"] == {
        "url": receiver.url,
        "events": ["job.succeeded", "job.failed", "job.cancelled"],
    }
    assert service.client.get("/v1/webhook_endpoints").json()["data"] == []
    found = service.client.get("/v1/webhook_endpoints", params={"job": job["id"]}).json()["data"]
    assert [one["job"] for one in found] == [job["id"]]
    assert service.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    problem(service.client.get(f"/v1/webhook_endpoints/{found[0]['id']}"), 404, "not_found")
    assert "webhook" not in json.dumps(service.client.get(f"/v1/jobs/{other['id']}/events").json())
    refused = service.client.post(
        "/v1/jobs", json={"model": job["model"], "budget": HALF, "webhook": {"url": "https://u:p@example.org"}}
    )
    assert "/webhook/url" in pointers(refused)


def test_worker_never_sees_a_jobs_webhook(service, receiver):
    from store.contract import WorkKind

    service.job(webhook={"url": receiver.url})
    service.inspect_model()
    claim = service.claim(WorkKind.job)
    assert "webhook" not in claim.subject.request


def test_failed_attempts_are_repeated_under_the_same_id_until_one_succeeds(service, receiver, monkeypatch):
    monkeypatch.setattr(deliveries, "RETRY_AFTER_S", (0.05, 0.05, 0.05))
    receiver.statuses = [500, 302, 200]
    made = endpoint(service, receiver.url)
    with sending(service):
        cancelled_job(service)
        (found,) = settled(service, made["id"])
    assert (found["status"], found["attempts"], found["last_status"]) == ("delivered", 3, 200)
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1
    assert service.client.get(f"/v1/webhook_endpoints/{made['id']}").json()["failing_since"] is None


def test_schedule_is_the_published_one_with_jitter_and_ends(service, receiver):
    made = endpoint(service, receiver.url)
    cancelled_job(service)
    pauses = []
    for attempt in range(1, 11):
        (due,) = claim_deliveries(service.database, 5)
        assert due.attempts == attempt
        assert claim_deliveries(service.database, 5) == []
        settle(service.database, due, Outcome(error="down"))
        with service.database.read() as session:
            row = session.scalars(select(WebhookDelivery)).one()
            pauses.append((row.next_attempt_at - row.last_attempt_at).total_seconds())
        due_now(service)
    for pause, planned in zip(pauses, deliveries.RETRY_AFTER_S, strict=False):
        assert planned <= pause <= planned * 1.2 + 5
    (found,) = sent_to(service, made["id"])
    assert (found["status"], found["attempts"], found["last_error"]) == ("failed", 10, "down")
    assert claim_deliveries(service.database, 5) == []


def test_receiver_that_asks_for_a_pause_gets_it(service, receiver):
    receiver.statuses, receiver.headers = [503], {"Retry-After": "1000"}
    outcome = post(receiver.url, b"{}", {}, policy=LOCAL)
    assert (outcome.status, outcome.retry_after_s, outcome.delivered) == (503, 1000.0, False)
    endpoint(service, receiver.url)
    cancelled_job(service)
    settle(service.database, claim_deliveries(service.database, 1)[0], outcome)
    with service.database.read() as session:
        row = session.scalars(select(WebhookDelivery)).one()
        assert (row.next_attempt_at - row.last_attempt_at).total_seconds() >= 1000


def test_endpoint_that_is_gone_or_fails_for_days_is_disabled_and_what_waits_fails(service, receiver):
    receiver.statuses = [410]
    made = endpoint(service, receiver.url)
    path = f"/v1/webhook_endpoints/{made['id']}"
    with sending(service):
        cancelled_job(service)
        (found,) = settled(service, made["id"])
    assert (found["status"], found["attempts"]) == ("failed", 1)
    shown = service.client.get(path).json()
    assert (shown["status"], shown["disabled_reason"]) == ("disabled", "It answered 410 Gone.")
    cancelled_job(service)
    assert len(sent_to(service, made["id"])) == 1
    problem(service.client.post(f"{path}/deliveries/{found['id']}/redeliver"), 409, "endpoint_disabled")
    service.client.patch(path, json={"status": "active"})
    for _ in range(2):
        cancelled_job(service)
    with service.database.transaction() as session:
        long_ago = service.database.now(session) - datetime.timedelta(days=6)
        session.execute(update(WebhookEndpoint).values(failing_since=long_ago))
    settle(service.database, claim_deliveries(service.database, 1)[0], Outcome(error="down"))
    assert service.client.get(path).json()["status"] == "disabled"
    assert {one["status"] for one in sent_to(service, made["id"])} == {"failed"}


def test_redelivery_sends_the_same_message_again_even_after_success(service, receiver):
    made = endpoint(service, receiver.url)
    with sending(service):
        cancelled_job(service)
        (found,) = settled(service, made["id"])
        again = service.client.post(f"/v1/webhook_endpoints/{made['id']}/deliveries/{found['id']}/redeliver")
        assert (again.status_code, again.json()["status"]) == (200, "pending")
        receiver.wait(2)
        assert settled(service, made["id"])[0]["status"] == "delivered"
    (first, body), (second, repeated) = receiver.seen
    assert (first["webhook-id"], body) == (second["webhook-id"], repeated)
    nowhere = f"/v1/webhook_endpoints/{made['id']}/deliveries/evt_nowhere/redeliver"
    problem(service.client.post(nowhere), 404, "not_found")


def test_two_senders_send_each_message_once(service, receiver):
    made = endpoint(service, receiver.url)
    model = service.upload()["id"]
    with sending(service, 2):
        for _ in range(15):
            cancelled_job(service, model=model)
        settled(service, made["id"], 15)
    assert len(receiver.seen) == len({headers["webhook-id"] for headers, _ in receiver.seen}) == 15


def test_message_of_a_killed_sender_is_due_again_and_its_late_outcome_counts_no_more(service, receiver):
    made = endpoint(service, receiver.url)
    cancelled_job(service)
    (killed,) = claim_deliveries(service.database, 1, lease_s=0.01)
    time.sleep(0.05)
    (second,) = claim_deliveries(service.database, 1)
    assert settle(service.database, killed, Outcome(error="late")) is None
    assert settle(service.database, second, Outcome(status=200)) is DeliveryStatus.delivered
    assert settle(service.database, second, Outcome(error="late")) is None
    assert sent_to(service, made["id"])[0]["status"] == "delivered"
    assert expire_deliveries(service.database) == 0
    with service.database.transaction() as session:
        session.execute(
            update(WebhookDelivery).values(created_at=service.database.now(session) - datetime.timedelta(31))
        )
    assert expire_deliveries(service.database) == 1


def test_message_and_job_are_written_together_or_not_at_all(service, receiver, monkeypatch):
    made = endpoint(service, receiver.url, events=["job.queued"])

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    model = service.upload()["id"]
    with monkeypatch.context() as patch:
        patch.setattr("store.queue.enqueue", broken)
        body = {"model": model, "budget": HALF}
        problem(service.client.post("/v1/jobs", json=body), 500, "internal")
    assert sent_to(service, made["id"]) == []


def test_refused_url_is_a_422_at_its_field(serve):
    with serve() as service:
        answer = service.client.post("/v1/webhook_endpoints", json={"url": "http://10.0.0.1/x"})
        assert "PENNYWEIGHT_WEBHOOK_ALLOW" in pointers(answer)["/url"]
