"""Requests per second and latency of the API over a large table of jobs, beside a bare FastAPI route in the same run.

    python -m benchmarks.api_load [--rows 100000] [--seconds 5] [--connections 8] [--keys]
    python -m benchmarks.api_load --rows 1000000 --database-url postgresql://…/empty

Fills a database with jobs (SQLite in a temporary folder, or an empty one that the URL names), starts `pennyweightd api` and a
bare application, each in a process of its own, and asks each in turn over keep-alive connections: `--connections` at a time
for polls and creations, `--list-connections` for lists. The bare application's only route is a `def` that returns the same
status and the same bytes. `--keys` asks with an API key. Two out of three jobs carry one label, one out of a hundred another,
and those that have succeeded a result with `--layers` layers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, select

from benchmarks.servers import Server, process
from store.contract import JobRequest, JobResult
from store.database import Database
from store.identifiers import new_id
from store.keys import KeyRepository
from store.tables import LOCAL_TENANT, Job, JobLabel, Model, Work

BATCH = 5000
STATUSES = ("succeeded",) * 17 + ("failed", "cancelled", "queued")

_BARE = """
import socket, sys
import uvicorn
from fastapi import FastAPI, Response

status, body = int(sys.argv[1]), open(sys.argv[2], "rb").read()
app = FastAPI()

@app.api_route("/bare", methods=["GET", "POST"])
def bare() -> Response:
    return Response(body, status_code=status, media_type="application/json", headers={"ETag": 'W/"1"'})

listener = socket.create_server(("127.0.0.1", 0))
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning")).run(sockets=[listener])
"""


@dataclass(frozen=True)
class Measured:
    """One kind of request: latencies in seconds, sorted, how many were answered in a second, and what each cost the server."""

    per_second: float
    cpu_s: float
    latencies_s: list[float]

    def quantile_ms(self, fraction: float) -> float:
        return self.latencies_s[min(len(self.latencies_s) - 1, int(fraction * len(self.latencies_s)))] * 1000


@dataclass(frozen=True)
class Asked:
    """A request as bytes on the wire, and the status that its answer must have."""

    name: str
    method: str
    path: str
    status: int
    headers: dict[str, str]
    body: bytes = b""

    def wire(self, path: str | None = None) -> bytes:
        lines = [f"{self.method} {path or self.path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}"] if self.body else []
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


def fill(database: Database, rows: int, layers: int) -> tuple[str, list[str]]:
    """Jobs over one ready model; returns the model's id and the ids of all jobs, oldest first. layers: of the networks
    whose results the succeeded ones have."""
    now, model = datetime.now(UTC), new_id("mdl")
    with database.transaction() as session:
        session.execute(
            insert(Model).values(
                id=model, tenant_id=LOCAL_TENANT, name="net", filename="net.th", object_key="x", size_bytes=1,
                sha256="ab" * 32, architecture_args={}, status="ready", created_at=now,
            )
        )  # fmt: skip
    request = JobRequest.model_validate({"model": model, "budget": {"flops": {"max_ratio": 0.5}}})
    result = _result(layers)
    ids: list[str] = []
    while len(ids) < rows:
        jobs, labels, work = [], [], []
        for index in range(len(ids), min(len(ids) + BATCH, rows)):
            id, status = new_id("job"), STATUSES[index % len(STATUSES)]
            given = {"team": str(index % 100), "env": "prod" if index % 3 else "test"}
            jobs.append(
                {
                    "id": id, "tenant_id": LOCAL_TENANT, "name": f"job {index}", "model_id": model, "status": status,
                    "attempt": 1, "request": {**request.model_dump(mode="json"), "labels": given}, "created_at": now,
                    "queued_at": now, "version": 3, "last_event_seq": 3,
                    "finished_at": None if status == "queued" else now,
                    "result": result if status == "succeeded" else None,
                    "error": {"code": "internal", "message": "It broke."} if status == "failed" else None,
                }
            )  # fmt: skip
            whose = {"job_id": id, "tenant_id": LOCAL_TENANT, "status": status}
            labels += [{**whose, "key": key, "value": value} for key, value in given.items()]
            state = "queued" if status == "queued" else "done"
            work.append(
                {
                    "id": id, "kind": "job", "tenant_id": LOCAL_TENANT, "queue": "auto", "priority": 0, "state": state,
                    "attempt": 1, "losses": 0, "troubles": 0, "available_at": now, "max_runtime_s": 7200,
                }
            )  # fmt: skip
            ids.append(id)
        with database.transaction() as session:
            session.execute(insert(Job), jobs)
            session.execute(insert(JobLabel), labels)
            session.execute(insert(Work), work)
    return model, ids


def found(database: Database) -> tuple[str, list[str]]:
    """What `fill` has returned."""
    with database.read() as session:
        return session.scalars(select(Model.id)).one(), list(session.scalars(select(Job.id).order_by(Job.id)))


def _result(layers: int) -> dict[str, Any]:
    """What a job on a network with so many layers is told."""
    costs = dict.fromkeys(("params", "macs", "flops", "weight_bytes", "peak_activation_bytes"), 1234567)
    costs |= {"memory_bytes": 1_234_567, "size_bytes": 1_234_567}
    width = {"out": 16, "params": 2304, "macs": 2359296}
    constraint = {"metric": "flops", "kind": None, "limit": 32440832, "value": 32400128, "met": True}
    names = ("model.onnx", "model.safetensors", "report.json")
    return JobResult.model_validate(
        {
            "met": True, "constraints": [constraint], "baseline": costs, "compressed": costs,
            "equivalence": {"max_relative_error": 3.1e-14, "passed": True}, "frozen": [],
            "layers": [{"name": f"layer1.{index}.conv1", "before": width, "after": width} for index in range(layers)],
            "artifacts": [{"name": name, "media_type": "x/y", "size": 123, "sha256": "ab" * 32} for name in names],
            "provenance": {"version": "0.1.0"},
        }
    ).model_dump(mode="json")  # fmt: skip


def api(folder: str, url: str, keys: bool) -> AbstractContextManager[Server]:
    """The service's own API process, without a limit on requests."""
    environment = {
        "PENNYWEIGHT_DATA_DIR": folder, "PENNYWEIGHT_DATABASE_URL": url, "PENNYWEIGHT_REQUIRE_KEYS": str(keys),
        "PENNYWEIGHT_RATE_LIMIT_PER_MINUTE": "0" if not keys else "100000000", "PENNYWEIGHT_LOG_LEVEL": "warning",
    }  # fmt: skip
    return process(["-m", "pennyweightd", "api", "--port", "0"], environment)


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    if length:
        await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


async def _load(server: Server, wires: list[bytes], status: int, seconds: float, connections: int) -> Measured:
    latencies: list[float] = []
    turn = count()
    end = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while time.perf_counter() < end:
            started = time.perf_counter()
            writer.write(wires[next(turn) % len(wires)])
            found = await _answer(reader)
            latencies.append(time.perf_counter() - started)
            if found != status:
                raise RuntimeError(f"answered {found}, not {status}")
        writer.close()

    started, cpu_s = time.perf_counter(), server.cpu_s()
    await asyncio.gather(*(one() for _ in range(connections)))
    elapsed_s, cpu_s = time.perf_counter() - started, server.cpu_s() - cpu_s
    return Measured(len(latencies) / elapsed_s, cpu_s / len(latencies), sorted(latencies))


def load(server: Server, asked: Asked, wires: list[bytes], options: argparse.Namespace) -> Measured:
    connections = options.list_connections if asked.name.startswith("list") else options.connections
    return asyncio.run(_load(server, wires, asked.status, options.seconds, connections))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--list-connections", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="API and bare route in turn, so often; medians are shown")
    parser.add_argument("--layers", type=int, default=20, help="of the networks whose results are listed")
    parser.add_argument("--filled", action="store_true", help="the database is one that this has filled before")
    parser.add_argument("--database-url", help="an empty database; left out, SQLite in a temporary folder")
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--only", default="", help="the kinds of request whose names begin so")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.database_url or f"sqlite:///{folder}/load.db"
        database = Database(url)
        database.migrate()
        started = time.monotonic()
        model, ids = found(database) if options.filled else fill(database, options.rows, options.layers)
        with database.transaction() as session:
            secret = KeyRepository(session, LOCAL_TENANT).create("load")[1] if options.keys else None
        print(f"{len(ids)} jobs in {database_name(url)} after {time.monotonic() - started:.0f} s")
        with api(folder, url, options.keys) as server:
            measure(server, folder, model, ids, secret, options)
        database.dispose()


def database_name(url: str) -> str:
    return url.split(":")[0].split("+")[0]


def measure(
    server: Server, folder: str, model: str, ids: list[str], secret: str | None, options: argparse.Namespace
) -> None:
    base = {"Authorization": f"Bearer {secret}"} if secret else {}
    old = {**base, "If-None-Match": 'W/"3"'}
    body = json.dumps({"model": model, "budget": {"flops": {"max_ratio": 0.5}}}).encode()
    create = {**base, "Content-Type": "application/json"}
    middle, deep = ids[len(ids) // 2], ids[min(20, len(ids) - 1)]
    kinds = [
        Asked("poll, 304", "GET", "/v1/jobs/{job}", 304, old),
        Asked("poll, 200", "GET", "/v1/jobs/{job}", 200, base),
        Asked("create", "POST", "/v1/jobs", 201, create, body),
        Asked("list, first page", "GET", "/v1/jobs", 200, base),
        Asked("list, middle page", "GET", f"/v1/jobs?after={middle}", 200, base),
        Asked("list, last page", "GET", f"/v1/jobs?after={deep}", 200, base),
        Asked("list, 100 entries", "GET", f"/v1/jobs?limit=100&after={middle}", 200, base),
        Asked("list, one status", "GET", f"/v1/jobs?status=failed&after={middle}", 200, base),
        Asked("list, two statuses", "GET", "/v1/jobs?status=failed&status=queued", 200, base),
        Asked("list, one label", "GET", f"/v1/jobs?label.team=7&after={middle}", 200, base),
        Asked("list, label and status", "GET", f"/v1/jobs?label.team=7&status=failed&after={middle}", 200, base),
        Asked("list, two labels", "GET", f"/v1/jobs?label.team=7&label.env=test&after={middle}", 200, base),
        Asked("list, label, 100 entries", "GET", f"/v1/jobs?label.env=prod&limit=100&after={middle}", 200, base),
        Asked("list, no such label", "GET", "/v1/jobs?label.team=none", 200, base),
    ]
    print(f"{'':24}  requests/s  bare /s  ratio   p50 ms   p99 ms   CPU ms  bare CPU ms")
    some = ids[:: max(1, len(ids) // 500)]
    for asked in (kind for kind in kinds if kind.name.startswith(options.only)):
        paths = [asked.path.format(job=id) for id in some] if "{job}" in asked.path else [asked.path]
        wires = [asked.wire(path) for path in paths]
        sample = httpx.request(
            asked.method, f"{server.url}{paths[0]}", headers=asked.headers, content=asked.body or None
        )
        if sample.status_code != asked.status:
            raise RuntimeError(f"{asked.name}: {sample.status_code} {sample.text[:300]}")
        file = Path(folder) / "bare"
        file.write_bytes(sample.content)
        ours: list[Measured] = []
        bare: list[Measured] = []
        with process(["-c", _BARE, str(asked.status), str(file)]) as bare_server:
            for _ in range(options.rounds):
                ours.append(load(server, asked, wires, options))
                bare.append(load(bare_server, asked, [asked.wire("/bare")], options))
        print(_row(asked.name, ours, bare), flush=True)


def _row(name: str, api: list[Measured], bare: list[Measured]) -> str:
    def median(values: list[Any]) -> float:
        return statistics.median(values)

    ours, theirs = median([one.per_second for one in api]), median([one.per_second for one in bare])
    p50, p99 = (median([one.quantile_ms(fraction) for one in api]) for fraction in (0.5, 0.99))
    cpu, bare_cpu = (median([one.cpu_s * 1000 for one in many]) for many in (api, bare))
    return f"{name:24}  {ours:10.0f}  {theirs:7.0f}  {ours / theirs:5.2f}  {p50:7.2f}  {p99:7.2f}  {cpu:7.2f}  {bare_cpu:11.2f}"


if __name__ == "__main__":
    main()
