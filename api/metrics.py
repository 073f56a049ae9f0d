"""`GET /metrics` for Prometheus.

Two sorts of numbers. What this process answers (`pennyweight_http_*`) is counted in its memory: every API process is
scraped by itself. Everything else is read from the database at the scrape, so that it covers all workers, survives
restarts, and is the same whichever API process tells it: take `max`, not `sum`, over processes.

Nothing here names a tenant, a job or a file.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from sqlalchemy.exc import SQLAlchemyError

from api.dependencies import ServicesOf
from api.problems import Problem, problems
from api.security import keys_required
from store import statistics, tallies
from store.database import Database
from store.settings import Settings
from store.tallies import TallyName

logger = logging.getLogger("api")

router = APIRouter(tags=["operations"])

STORED_BYTES_EVERY_S = 60.0
"""Adding up what is stored reads every row of its tables, so that scrapes share one answer for a while."""
UNMATCHED = "unmatched"
REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_HISTOGRAMS = {
    TallyName.queue_wait: "How long work waited, from when it could be claimed to its claim.",
    TallyName.job_run: "How long jobs ran, from their last claim to their end.",
    TallyName.stage: "How long the stages of jobs took.",
}
_COUNTERS = {
    TallyName.jobs_ended: "Jobs that have ended, by status and error code.",
    TallyName.gpu_seconds: "Seconds that jobs have held GPUs, added up over GPUs, lost attempts included.",
    TallyName.lost_leases: "Leases that were lost: the worker or its runner died, or did not answer in time.",
    TallyName.webhook_attempts: "Attempts to deliver a webhook's message: delivered, retry (it failed and is tried again), failed.",
    TallyName.worker_troubles: "Work that was given back for a reason of the worker's own.",
}


class RequestMetrics:
    """What this process has answered. `registry` also carries what the database tells."""

    def __init__(self, version: str, database: Database) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "pennyweight_http_requests",
            "Requests that this process has answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "pennyweight_http_request_duration_seconds",
            "How long the answers of this process took, waiting ones (Prefer: wait, event streams) included.",
            ["method", "route"],
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(StoreCollector(version, database))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class StoreCollector(Collector):
    """The installation, as the database sees it at this moment."""

    def __init__(self, version: str, database: Database) -> None:
        self._version = version
        self._database = database
        self._lock = threading.Lock()
        self._stored: tuple[float, dict[str, int]] | None = None

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not ask the database

    def collect(self) -> Iterator[Metric]:
        yield _gauge("pennyweight_build_info", "What runs here.", ("version",), [((self._version,), 1)])
        try:
            families = self._read()
        except SQLAlchemyError:
            # The scrape itself must go on: what this process knows by itself is wanted most when the database is down.
            logger.exception("The metrics of the database could not be read.")
            families = []
        up = "Whether the metrics of the database could be read."
        yield _gauge("pennyweight_database_up", up, (), [((), 1 if families else 0)])
        yield from families

    def _read(self) -> list[Metric]:
        with self._database.read() as session:
            waiting = statistics.queues(session)
            groups = statistics.workers(session)
            messages = statistics.webhooks(session)
            rows = list(tallies.read(session))
        by_queue, by_sandbox = ("queue", "kind"), ("version", "sandbox_level", "sandbox_kind")
        places = [((state.queue, state.kind.value), state) for state in waiting]
        alike = [((group.version, str(group.sandbox_level), group.sandbox_kind), group) for group in groups]
        return [
            _gauge(
                "pennyweight_queue_depth",
                "Work that waits, what waits for an inspection included.",
                by_queue,
                [(labels, state.queued) for labels, state in places],
            ),
            _gauge(
                "pennyweight_queue_oldest_seconds",
                "How long the oldest waiting work could have been claimed.",
                by_queue,
                [(labels, state.oldest_s) for labels, state in places],
            ),
            _gauge(
                "pennyweight_running",
                "Work that a worker holds.",
                by_queue,
                [(labels, state.running) for labels, state in places],
            ),
            _gauge(
                "pennyweight_workers",
                f"Slots of workers that were heard of in the last {statistics.WORKER_SILENCE_S} s. Sandbox level 2 is cut "
                "off from network and files, level 1 is limits only.",
                by_sandbox,
                [(labels, group.live) for labels, group in alike],
            ),
            _gauge("pennyweight_webhooks_pending", "Messages to be delivered.", (), [((), messages.pending)]),
            _gauge(
                "pennyweight_webhooks_late_seconds",
                "How long the message that waits longest should have been tried.",
                (),
                [((), messages.late_s)],
            ),
            _gauge(
                "pennyweight_stored_bytes",
                f"Bytes of stored files by what they are, at most {STORED_BYTES_EVERY_S:g} s old.",
                ("kind",),
                [((kind,), size) for kind, size in self._stored_bytes().items()],
            ),
            *(_counter(name, text, rows) for name, text in _COUNTERS.items()),
            *(_histogram(name, text, rows) for name, text in _HISTOGRAMS.items()),
        ]

    def _stored_bytes(self) -> dict[str, int]:
        with self._lock:
            if self._stored is None or time.monotonic() - self._stored[0] > STORED_BYTES_EVERY_S:
                with self._database.read() as session:
                    self._stored = time.monotonic(), statistics.stored_bytes(session)
            return self._stored[1]


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    description="Without API keys, open. With them it takes the token of `PENNYWEIGHT_METRICS_TOKEN` as a bearer, unless "
    "`PENNYWEIGHT_METRICS_OPEN` is set.",
    response_class=Response,
    responses={**problems(401), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request, services: ServicesOf) -> Response:
    _admit(services.settings, request.headers.get("authorization"))
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(
        encode(request.app.state.metrics.registry), headers={"Content-Type": media_type, "Cache-Control": "no-store"}
    )


def _admit(settings: Settings, authorization: str | None) -> None:
    """An API key is a tenant's, and these numbers are the operator's: a token of their own. Raises the 401."""
    token = settings.metrics_token
    if token is None:
        if settings.metrics_open or not keys_required(settings):
            return
        raise _unauthorized(
            "Set PENNYWEIGHT_METRICS_TOKEN and send it as a bearer, or PENNYWEIGHT_METRICS_OPEN=true where only your own "
            "network reaches this port."
        )
    given = (authorization or "").partition(" ")[2].strip()
    if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise _unauthorized("Send the token of PENNYWEIGHT_METRICS_TOKEN: `Authorization: Bearer …`.")


def _unauthorized(detail: str) -> Problem:
    return Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="pennyweight metrics"'})


def _gauge(
    name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: TallyName, text: str, rows: Iterable[tallies.Row]) -> CounterMetricFamily:
    found = [row for row in rows if row.name is name]
    labels = sorted({label for row in found for label in row.labels})
    family = CounterMetricFamily(f"pennyweight_{name.value}", text, labels=labels)
    for row in found:
        family.add_metric([row.labels.get(label, "") for label in labels], row.value)
    if not found:
        family.add_metric([], 0)  # a rate needs to see a zero before the first
    return family


def _histogram(name: TallyName, text: str, rows: Iterable[tallies.Row]) -> HistogramMetricFamily:
    """Buckets are kept apart and shown as Prometheus wants them, each with all that are smaller."""
    parts: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for row in rows:
        if row.name is name:
            place = tuple((key, value) for key, value in sorted(row.labels.items()) if key != tallies.LE)
            parts.setdefault(place, {})[row.labels[tallies.LE]] = row.value
    labels = sorted({key for place in parts for key, _ in place})
    family = HistogramMetricFamily(f"pennyweight_{name.value}", text, labels=labels)
    for place, counts in sorted(parts.items()):
        total, buckets = 0.0, []
        for bound in (*(f"{bound:g}" for bound in tallies.BUCKETS_S), "+Inf"):
            total += counts.get(bound, 0.0)
            buckets.append((floatToGoString(float(bound)), total))
        values = dict(place)
        family.add_metric([values[label] for label in labels], buckets, counts.get(tallies.SUM, 0.0))
    return family
