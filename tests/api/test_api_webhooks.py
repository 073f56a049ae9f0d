"""Webhooks end to end: an endpoint, a job, a real receiver, Standard Webhooks' own verifier, and who may be called."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from store import deliveries
from store.deliveries import Outcome, claim_deliveries, expire_deliveries, settle
from store.tables import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from store.webhook_urls import RefusedUrl, WebhookPolicy
from tests.api.conftest import HALF, Service, pointers, problem, spec
from worker.pinned_http import post
from worker.webhooks import WebhookSender

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
LOCAL = WebhookPolicy(allow=LOOPBACK)
ALLOWED = {"webhook_allow": "127.0.0.0/8"}


@dataclass
class Receiver:
    """A receiver that answers with `statuses` in turn, the last one for ever."""

    url: str
    statuses: list[int] = field(default_factory=lambda: [204])
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    drip: bool = False

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.seen) < count:
            assert time.monotonic() < deadline, f"{len(self.seen)} of {count} messages arrived"
            time.sleep(0.02)


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
            time.sleep(receiver.pause_s)
            status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
            self.send_response(status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()
            while receiver.drip:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                receiver.drip = False

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/hook?x=1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


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


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "0.0.0.0", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "168.63.129.16", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8",
        "2002:0a00:0001::1", "64:ff9b::a00:1", "64:ff9b:1::1", "2001:0:4136:e378::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_no_address_that_is_not_public_is_called(address):
    policy = WebhookPolicy()
    target = policy.target("https://hooks.example.org/x")
    with pytest.raises(RefusedUrl):
        policy.check(target, ["93.184.215.14", address])
    outcome = post("https://hooks.example.org/x", b"", {}, policy=policy, resolver=lambda *_: ["1.1.1.1", address])
    assert outcome.status is None and (outcome.error or "").startswith("Not sent")


def test_public_addresses_are_called_and_listed_networks_too():
    policy = WebhookPolicy(allow=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")))
    policy.check(policy.target("https://a.example"), ["93.184.215.14", "2606:4700::1111", "10.1.2.3", "fd00::1"])
    policy.check(policy.target("http://a.example:8080"), ["10.1.2.3"])
    for url, address in (
        ("https://a.example", "10.2.0.1"),
        ("http://a.example", "93.184.215.14"),
        ("https://a.example:8443", "93.184.215.14"),
    ):
        with pytest.raises(RefusedUrl):
            policy.check(policy.target(url), [address])


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "ftp://example.org/", "https://", "https:///x", "https://user@example.org/",
        "https://u:p@example.org/", "https://example.org/#x", "https://example.org:99999/", "https://example.org:8443/",
        "https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest", "https://ex\u00e4mple.org/",
        "https://example.org/a b", "https://example.org/\r\nX: y", "https://[", "x" * 2049, "//example.org", "",
    ],
)  # fmt: skip
def test_urls_that_are_never_called_are_refused_when_they_are_given(serve, url):
    with pytest.raises(RefusedUrl):
        WebhookPolicy().target(url)


def test_refused_url_is_a_422_at_its_field(serve):
    with serve() as service:
        answer = service.client.post("/v1/webhook_endpoints", json={"url": "http://10.0.0.1/x"})
        assert "PENNYWEIGHT_WEBHOOK_ALLOW" in pointers(answer)["/url"]


def test_name_that_resolves_elsewhere_after_the_check_is_called_where_it_was_checked(receiver):
    """DNS rebinding: the first answer is the receiver, the second one would be another machine."""
    answers = iter([["127.0.0.1"], ["10.9.9.9"]])
    port = int(receiver.url.split(":")[2].split("/")[0])
    outcome = post(f"http://rebound.example:{port}/", b"{}", {}, policy=LOCAL, resolver=lambda *_: next(answers))
    assert outcome.status == 204
    assert receiver.seen[0][0]["host"] == f"rebound.example:{port}"
    assert next(answers) == ["10.9.9.9"]  # nobody asked again
    assert "10.9.9.9" in (
        post("http://rebound.example/", b"", {}, policy=LOCAL, resolver=lambda *_: ["10.9.9.9"]).error or ""
    )


def test_proxies_of_the_environment_and_redirects_are_ignored(receiver, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    receiver.statuses, receiver.headers = [307], {"Location": receiver.url}
    outcome = post(receiver.url, b"{}", {}, policy=LOCAL)
    assert (outcome.status, outcome.delivered, len(receiver.seen)) == (307, False, 1)
    assert "redirects are not followed" in (outcome.error or "")


def test_receiver_that_is_slow_endless_or_absent_costs_a_bounded_time(receiver):
    quick = partial(post, body=b"{}", headers={}, policy=LOCAL, timeout_s=0.5)
    receiver.pause_s = 2
    assert quick(receiver.url).error == "No answer within 0.5 s."
    receiver.pause_s, receiver.drip, started = 0, True, time.monotonic()
    quick(receiver.url)
    assert time.monotonic() - started < 10
    assert "failed" in (quick("http://127.0.0.1:9/").error or "")
    gone = post("https://name.invalid/", b"", {}, policy=WebhookPolicy())
    assert gone.error == "Not sent: the name has no address."


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for hooks.example.test, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.example.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_tls_is_checked_against_the_name_though_the_connection_goes_to_the_address(authority):
    certificate, key = authority
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    names: list[str | None] = []
    serving.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with receiving(serving) as receiver:
        port = receiver.url.split(":")[2].split("/")[0]
        call = partial(post, body=b"{}", headers={}, policy=LOCAL, resolver=lambda *_: ["127.0.0.1"])
        assert call(f"https://hooks.example.test:{port}/", tls=trusting).status == 204
        assert names == ["hooks.example.test"]
        assert receiver.seen[0][0]["host"] == f"hooks.example.test:{port}"
        assert "TLS failed" in (call(f"https://other.example.test:{port}/", tls=trusting).error or "")
        assert "TLS failed" in (call(f"https://hooks.example.test:{port}/").error or "")
        assert len(receiver.seen) == 1
