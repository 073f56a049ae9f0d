"""Traces for OpenTelemetry: requests, and what workers do. Off unless `PENNYWEIGHT_TRACING` is set, and then not even imported.

A job is a trace of its own: the trace id is the job id's ULID, whose 128 bits are as many as a trace id has. So every
attempt, on whatever machine, is in one trace, nothing has to be carried through the database, and whoever knows the job
knows the trace. Where spans go is said by the standard `OTEL_*` variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from ulid import ULID

from store.errors import StoreError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

_trace_id: ContextVar[int | None] = ContextVar("pennyweight_trace_id", default=None)
_tracer: Tracer | None = None
_provider: TracerProvider | None = None


class TracingUnavailable(StoreError):
    """Tracing was asked for and its libraries are not installed."""


class Span(Protocol):
    """What the rest of the code may do with a span. Values that are None are left out."""

    def set(self, **attributes: object) -> None: ...
    def rename(self, name: str) -> None: ...
    def fail(self, what: str) -> None: ...


class _Nothing:
    """The span of a process that does not trace."""

    def set(self, **attributes: object) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def fail(self, what: str) -> None:
        pass


class _Recorded:
    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, **attributes: object) -> None:
        for key, value in attributes.items():
            if value is not None:
                self._span.set_attribute(key.replace("__", "."), value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, what: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, what))


_NOTHING = _Nothing()


def configure(version: str, exporter: SpanExporter | None = None) -> None:
    """Trace from here on, to `exporter`, by default OTLP over HTTP. Raises TracingUnavailable."""
    global _tracer, _provider
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise TracingUnavailable(
            f"PENNYWEIGHT_TRACING needs libraries that are not installed ({error}). "
            "Run: pip install 'pennyweight-server[otel]'"
        ) from error

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return _trace_id.get() or super().generate_trace_id()

    resource = Resource.create({"service.name": "pennyweight", "service.version": version})
    provider = TracerProvider(resource=resource, id_generator=Ids())
    processor = BatchSpanProcessor(OTLPSpanExporter()) if exporter is None else SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    _provider = provider
    _tracer = provider.get_tracer("pennyweight", version)


def stop() -> None:
    """Send what was traced, and trace no more."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


@contextmanager
def span(
    name: str,
    *,
    server: bool = False,
    headers: Mapping[str, str] | None = None,
    of: str | None = None,
    **attributes: object,
) -> Iterator[Span]:
    """A span around the block. headers: those of a request, whose `traceparent` is continued. of: the id of the job (or
    other subject) whose trace this begins. Two underscores in an attribute's name are a dot. An exception fails it."""
    if _tracer is None:
        yield _NOTHING
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None
    if headers is not None:
        context = TraceContextTextMapPropagator().extract(headers, Context())
    if of is not None:
        context = Context()
    token = _trace_id.set(trace_id(of) if of is not None else _trace_id.get())
    try:
        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        with _tracer.start_as_current_span(name, context, kind) as started:
            recorded = _Recorded(started)
            recorded.set(**attributes)
            yield recorded
    finally:
        _trace_id.reset(token)


class Phases:
    """Spans one after another inside the current one: entering the next phase ends the last."""

    def __init__(self) -> None:
        self._current: Any = None

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def enter(self, name: str) -> None:
        self._end()
        if _tracer is not None:
            self._current = _tracer.start_span(name)

    def _end(self) -> None:
        if self._current is not None:
            self._current.end()
            self._current = None


def trace_id(id: str) -> int:
    """The trace of a job (or plan, model, dataset) by its id."""
    return int(ULID.from_str(id.rpartition("_")[2]))
