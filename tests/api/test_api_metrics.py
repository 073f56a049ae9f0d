"""What `/metrics` says is what happened, for every process, and tells nobody's secrets."""

from __future__ import annotations

import time
from datetime import timedelta

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from store.contract import ErrorCode, ErrorInfo, WorkKind
from store.deliveries import Outcome, claim_deliveries, settle
from store.tables import LOCAL_TENANT, Job, Work, Worker
from store.transitions import enter_stage
from store.work import claim, expire_leases, fail_job, heartbeat, release, trouble
from tests.api.conftest import CATALOGUE, problem

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: httpx.Client, **headers: str) -> Samples:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def scrape_after(client: httpx.Client, requests: int) -> Samples:
    """What is told once so many other requests are counted: that happens after the answer, which the client may have first."""
    deadline = time.monotonic() + 10
    while True:
        samples = scrape(client)
        counted = (
            number
            for (name, labels), number in samples.items()
            if name == "pennyweight_http_requests_total" and ("route", "/metrics") not in labels
        )
        if sum(counted) >= requests or time.monotonic() > deadline:
            return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"pennyweight_{name}", frozenset(labels.items())))


def test_requests_are_counted_under_the_route_and_not_under_the_path(service):
    job = service.job()["id"]
    for path in (f"/v1/jobs/{job}", f"/jobs/{job}", "/v1/jobs/job_unknown"):
        service.client.get(path)
    service.client.get("/wp-login.php")
    service.client.request("BREW", "/v1/jobs")
    samples = scrape_after(service.client, 7)
    route = "/v1/jobs/{job_id}"
    assert value(samples, "http_requests_total", method="GET", route=route, status="200") == 2
    assert value(samples, "http_requests_total", method="GET", route=route, status="404") == 1
    assert value(samples, "http_requests_total", method="POST", route="/v1/jobs", status="201") == 1
    assert value(samples, "http_requests_total", method="GET", route="unmatched", status="404") == 1
    assert value(samples, "http_request_duration_seconds_count", method="GET", route=route) == 3
    assert value(samples, "http_request_duration_seconds_bucket", method="GET", route=route, le="+Inf") == 3
    assert {dict(labels).get("method") for _, labels in samples} <= {None, "GET", "POST", "other"}


def test_depth_age_and_what_runs_are_told_by_queue_and_kind(service):
    service.job(device="gpu")
    service.job()
    with service.database.transaction() as session:
        old = service.database.now(session) - timedelta(seconds=100)
        session.execute(update(Work).where(Work.queue == "gpu").values(available_at=old))
    samples = scrape(service.client)
    assert value(samples, "queue_depth", queue="gpu", kind="job") == 1
    assert value(samples, "queue_depth", queue="auto", kind="job") == 1
    assert value(samples, "queue_depth", queue="auto", kind="inspect_model") == 2
    assert 100 <= value(samples, "queue_oldest_seconds", queue="gpu", kind="job") < 200
    service.inspect_model()
    service.claim(WorkKind.inspect_model)
    samples = scrape(service.client)
    assert value(samples, "running", queue="auto", kind="inspect_model") == 1
    assert value(samples, "queue_depth", queue="auto", kind="inspect_model") == 0


def test_what_jobs_did_is_counted_where_they_did_it(service):
    for _ in range(3):
        service.job()
        service.inspect_model()
    first = service.claim(WorkKind.job)
    heartbeat(service.database, first, 60, stage="plan")
    time.sleep(0.15)
    heartbeat(service.database, first, 60, stage="recover")
    heartbeat(service.database, first, 60, stage="surprise of a runner")
    fail_job(service.database, first, ErrorInfo(code=ErrorCode.out_of_memory, message="It did not fit."))
    service.finish_job()
    lost = service.claim(WorkKind.job)
    with service.database.transaction() as session:
        session.execute(update(Work).where(Work.id == lost.id).values(lease_expires_at=service.database.now(session)))
    assert expire_leases(service.database, backoff_s=0) == 1
    trouble(service.database, service.claim(WorkKind.job), delay_s=0, what="no disk")
    samples = scrape(service.client)
    assert value(samples, "jobs_ended_total", status="failed", code="out_of_memory") == 1
    assert value(samples, "jobs_ended_total", status="succeeded", code="none") == 1
    assert value(samples, "lost_leases_total", kind="job") == 1
    assert value(samples, "worker_troubles_total", kind="job") == 1
    assert value(samples, "queue_wait_seconds_count", kind="job", queue="auto") == 4
    assert value(samples, "job_run_seconds_count", status="failed") == 1
    assert value(samples, "job_run_seconds_sum", status="failed") >= 0.15
    assert value(samples, "stage_seconds_count", stage="plan") == 1
    assert value(samples, "stage_seconds_sum", stage="plan") >= 0.15
    assert value(samples, "stage_seconds_bucket", stage="plan", le="0.1") == 0
    assert value(samples, "stage_seconds_bucket", stage="plan", le="43200.0") == 1
    assert value(samples, "stage_seconds_count", stage="other") == 1
    assert not [labels for _, labels in samples if "surprise" in str(labels)]


def test_a_change_that_is_rolled_back_is_not_counted(service):
    service.job()
    service.inspect_model()
    work = service.claim(WorkKind.job)
    before = scrape(service.client)
    with pytest.raises(RuntimeError), service.database.transaction() as session:
        enter_stage(session, session.get_one(Job, work.id), "plan", now=service.database.now(session))
        raise RuntimeError
    after = scrape(service.client)
    assert value(before, "stage_seconds_count", stage="plan") == value(after, "stage_seconds_count", stage="plan")


def test_workers_and_stored_bytes_and_the_build_are_told(service):
    service.publish(CATALOGUE)
    size = service.upload()["size_bytes"]
    samples = scrape(service.client)
    alike = {"version": "0.1.0", "sandbox_level": "2", "sandbox_kind": "bubblewrap"}
    assert value(samples, "workers", **alike) == 1
    assert value(samples, "stored_bytes", kind="models") == size
    assert value(samples, "build_info", version="0.1.0") == 1
    assert value(samples, "database_up") == 1
    with service.database.transaction() as session:
        session.execute(update(Worker).values(seen_at=service.database.now(session) - timedelta(seconds=100)))
    assert value(scrape(service.client), "workers", **alike) == 0


def test_a_broken_database_does_not_break_the_scrape(service):
    service.client.get("/v1/jobs")
    with service.database_lost():
        samples = scrape_after(service.client, 1)
    assert value(samples, "database_up") == 0
    assert value(samples, "http_requests_total", method="GET", route="/v1/jobs", status="200") == 1


def test_no_series_names_a_tenant_a_job_or_a_file(service):
    job = service.job(name="secret plan")
    service.client.get(f"/v1/jobs/{job['id']}")
    text = service.client.get("/metrics").text
    assert not [word for word in (LOCAL_TENANT, job["id"], job["model"], "secret", "net.pt") if f'"{word}' in text]


def test_where_keys_are_needed_the_numbers_take_a_token_of_their_own(serve):
    with serve(require_keys=True, metrics_token="scrape-me") as service:
        refused = problem(service.client.get("/metrics"), 401, "unauthorized")
        assert "PENNYWEIGHT_METRICS_TOKEN" in refused["detail"]
        problem(service.client.get("/metrics", headers={"Authorization": "Bearer wrong"}), 401, "unauthorized")
        a_tenants_key = {"Authorization": f"Bearer {service.key()}"}
        problem(service.client.get("/metrics", headers=a_tenants_key), 401, "unauthorized")
        assert scrape(service.client, Authorization="Bearer scrape-me")


@pytest.mark.parametrize(("options", "status"), [({}, 401), ({"metrics_open": True}, 200)])
def test_without_a_token_only_the_setting_opens_them_to_strangers(serve, options, status):
    with serve(require_keys=True, **options) as service:
        assert service.client.get("/metrics").status_code == status


def test_gpu_seconds_count_every_attempt_of_jobs_that_ran_on_one(service):
    service.job(device="auto")
    service.inspect_model()
    service.job(device="cpu")
    service.inspect_model()
    for _ in range(2):
        claims = [
            claim(service.database, worker_id="w", kinds={WorkKind.job}, queues={"cpu", "gpu"}, lease_s=60)
            for _ in "ab"
        ]
        with service.database.transaction() as session:
            session.execute(update(Job).values(started_at=service.database.now(session) - timedelta(seconds=50)))
        for one in claims:
            release(service.database, one)
    assert 100 <= value(scrape(service.client), "gpu_seconds_total") < 150


def test_deliveries_of_webhooks_are_counted_by_what_came_of_them(service):
    hook = {"url": "https://hooks.example.org/x", "events": ["job.cancelled"]}
    for _ in range(3):
        service.client.post(f"/v1/jobs/{service.job(webhook=hook)['id']}/cancel")
    samples = scrape(service.client)
    assert value(samples, "webhooks_pending") == 3
    assert 0 <= value(samples, "webhooks_late_seconds") < 60
    for outcome in (Outcome(status=204), Outcome(status=500), Outcome(status=410)):
        (due,) = claim_deliveries(service.database, 1)
        settle(service.database, due, outcome)
    samples = scrape(service.client)
    counted = {
        result: value(samples, "webhook_attempts_total", result=result) for result in ("delivered", "retry", "failed")
    }
    assert counted == {"delivered": 1, "retry": 1, "failed": 1}
    assert value(samples, "webhooks_pending") == 1
