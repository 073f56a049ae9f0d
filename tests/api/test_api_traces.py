"""Requests as spans: named after the route, part of the caller's trace, with the ids that they are about."""

from __future__ import annotations

import time

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from store import tracing

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter():
    exporter = InMemorySpanExporter()
    tracing.configure("0.1.0", exporter)
    yield exporter
    tracing.stop()


def finished(exporter: InMemorySpanExporter, name: str):
    """The span of this name; it ends a moment after its answer."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for span in exporter.get_finished_spans():
            if span.name == name:
                return span
        time.sleep(0.01)
    raise AssertionError([span.name for span in exporter.get_finished_spans()])


def test_request_continues_its_callers_trace_and_names_the_job_that_it_made(exporter, service):
    model = service.upload()["id"]
    body = {"model": model, "budget": {"params": {"max": 1}}}
    job = service.client.post("/v1/jobs", json=body, headers={"traceparent": CALLER, "X-Request-Id": "find-me"}).json()
    span = finished(exporter, "POST /v1/jobs")
    assert f"{span.context.trace_id:032x}" == CALLER.split("-")[1]
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/jobs",
        "http.response.status_code": 201,
        "request_id": "find-me",
        "job_id": job["id"],
    }


def test_request_that_finds_nothing_is_no_failure_of_ours(exporter, client):
    client.get("/v1/jobs/job_nowhere")
    span = finished(exporter, "GET /v1/jobs/{job_id}")
    assert span.attributes["http.response.status_code"] == 404
    assert span.status.status_code.name == "UNSET"
