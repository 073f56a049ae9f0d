"""How soon does a job's runner start? From POST to the first line of its runner, on both stacks.

    .venv/bin/python -m benchmarks.dispatch [--jobs 30]

One job at a time on a model that is inspected already, with scripted runners (started beforehand where the worker keeps
one ready, each used once), and the timings that the service has by default. The end is the time of the event `job.stage`
that the first line causes, as the database saw it, so the network and the client's polling do not count. Prints p50 and
p99 for one machine (SQLite, files) and for the fleet (PostgreSQL, S3 as moto plays it, Celery and Redis), and what a
waiting runner of the engine weighs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.databases import create_database
from tests.servers import Postgres, Redis
from tests.stacks.stack import TIMING, Fleet, OneMachine, Stack, descendants, wait_for
from tests.store.object_stores import moto_endpoint, s3_environment, s3_url

PAUSE_S = 0.5


def dispatch_times_s(stack: Stack, jobs: int) -> list[float]:
    """Seconds from just before each POST to its runner's first line."""
    content = json.dumps({"do": "succeed"}).encode()
    model = stack.client.post("/v1/models", files={"file": ("net.pt", content)}).raise_for_status().json()["id"]
    wait_for(lambda: stack.client.get(f"/v1/models/{model}").json()["status"] == "ready")
    times = []
    for _ in range(jobs):
        time.sleep(PAUSE_S)
        posted = time.time()
        body = {"model": model, "budget": {"params": {"max_ratio": 0.5}}}
        id = stack.client.post("/v1/jobs", json=body).raise_for_status().json()["id"]
        stack.ended(id)
        events = stack.client.get(f"/v1/jobs/{id}/events", params={"limit": 100, "order": "asc"}).json()["data"]
        first = next(event for event in events if event["type"] == "job.stage")
        at = first.get("at") or first["created_at"]
        times.append(datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() - posted)
    return sorted(times)


def waiting_runner_bytes(folder: Path) -> int:
    """Private memory of one runner of the engine that waits for a task."""
    machine = OneMachine(folder, scripted=False)
    with contextlib.closing(machine):
        wait_for(lambda: machine.client.get("/readyz").json()["worker"]["status"] == "ok")
        time.sleep(10)
        return max(_private_bytes(pid) for pid in descendants(machine.workers[0].pid))


def _private_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return 0


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request to moto
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=30)
    jobs = parser.parse_args().jobs
    TIMING.clear()  # the tests' are quicker than the defaults
    print(f"{jobs} jobs, one at a time; load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with contextlib.ExitStack() as kept:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="pennyweight-dispatch-")))
        folder.chmod(0o755)
        kept.enter_context(s3_environment())
        for name in ("one", "fleet", "engine"):
            (folder / name).mkdir()
        with contextlib.closing(OneMachine(folder / "one")) as machine:
            show(machine.kind, dispatch_times_s(machine, jobs))
        postgres, redis = kept.enter_context(Postgres()), kept.enter_context(Redis())
        storage = s3_url("moto", kept.enter_context(moto_endpoint()))
        with contextlib.closing(
            Fleet(folder / "fleet", create_database(postgres.url()), storage, redis.url())
        ) as fleet:
            time.sleep(5)
            show(fleet.kind, dispatch_times_s(fleet, jobs))
        print(f"a waiting runner of the engine: {waiting_runner_bytes(folder / 'engine') / 2**20:.0f} MiB of its own")


def show(kind: str, times: list[float]) -> None:
    p50, p99 = times[len(times) // 2], times[min(int(0.99 * len(times)), len(times) - 1)]
    print(f"{kind}: POST to first runner line p50 {p50:.3f} s, p99 {p99:.3f} s, of {len(times)}")


if __name__ == "__main__":
    main()
