"""Tracing: nothing is imported while it is off; a job's attempts are one trace, whose id is the job's."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from store import tracing
from store.identifiers import new_id


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    tracing.configure("0.1.0", exporter)
    yield exporter.get_finished_spans
    tracing.stop()


def test_off_it_imports_nothing_and_costs_a_call():
    code = (
        "import sys; from store import tracing\n"
        "with tracing.span('x', a=1) as span, tracing.Phases() as phases:\n"
        "    span.set(b=2); span.rename('y'); span.fail('z'); phases.enter('p')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_without_the_libraries_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(tracing.TracingUnavailable, match=r"pip install 'pennyweight-server\[otel\]'"):
        tracing.configure("0.1.0")


def test_attempts_of_a_job_share_the_trace_that_its_id_names(spans):
    job = new_id("job")
    for attempt in (1, 2):
        with tracing.span("work job", of=job, attempt=attempt, tenant=None), tracing.Phases() as phases:
            phases.enter("stage plan")
            phases.enter("stage recover")
    found = spans()
    assert [span.name for span in found] == ["stage plan", "stage recover", "work job"] * 2
    assert {span.context.trace_id for span in found} == {tracing.trace_id(job)}
    roots = [span for span in found if span.parent is None]
    assert [dict(span.attributes) for span in roots] == [{"attempt": 1}, {"attempt": 2}]
    assert [span.parent.span_id for span in found[:2]] == [roots[0].context.span_id] * 2
    assert found[0].end_time <= found[1].start_time


def test_a_request_goes_on_with_the_trace_of_its_caller_and_work_in_it_does_not(spans):
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with tracing.span("GET", server=True, headers={"traceparent": caller}) as span:
        span.rename("GET /v1/jobs")
        span.fail("status 503")
        with tracing.span("work plan", of=new_id("pln")):
            pass
    inner, outer = spans()
    assert (outer.name, f"{outer.context.trace_id:032x}") == ("GET /v1/jobs", "0af7651916cd43dd8448eb211c80319c")
    assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
    assert not outer.status.is_ok
    assert inner.context.trace_id != outer.context.trace_id
    assert inner.parent is None


def test_an_exception_fails_the_span_and_goes_on(spans):
    with pytest.raises(ValueError), tracing.span("work job", of=new_id("job")):
        raise ValueError("no")
    (span,) = spans()
    assert not span.status.is_ok
    assert span.events[0].attributes["exception.type"] == "ValueError"
