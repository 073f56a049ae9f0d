"""Jobs on the full stack while everything is killed: does each end once, and how soon is it taken up again?

    .venv/bin/python -m benchmarks.chaos [--jobs 2000] [--workers 2] [--slots 2] [--seed 0] [--every 2] [--engine] [--json FILE]

Starts a private PostgreSQL and Redis, moto as S3 store behind a small fault proxy, the API and workers with scripted
runners (the supervisor, the sandbox, the protocol and the storage are real; only the engine is left out, and with
`--engine` not even that), and posts jobs while it kills -9 runners, Celery children, Celery processes, workers and the
API, stops workers past their lease, flushes and restarts Redis, restarts PostgreSQL, and makes S3 slow, failing and
absent. Prints what was done, what became of the jobs, and how long after each trouble of its own a job was taken up
again; `--json FILE` writes it, too. Exit status 1 if anything was lost or doubled, or left lying about.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from benchmarks.fault_proxy import FaultProxy
from store.contract import JobStatus
from store.orphans import remove_orphans
from store.tables import Artifact, Job, JobEvent, Work
from tests.databases import create_database
from tests.servers import Postgres, Redis
from tests.stacks.stack import Fleet, busy_runners, engine_job_form, job_form
from tests.store.object_stores import BUCKET, moto_endpoint, s3_environment

# Bounded by what the moto server and two cores take.
POSTERS = 3
STOPPED_S = 5.0
FAULT_S = 2.0
ENDS = ("job.succeeded", "job.failed", "job.cancelled")
_ID = re.compile(r"\b(?:mdl|ds)_\w+")
TIMING = {"PENNYWEIGHT_LEASE_S": "4", "PENNYWEIGHT_HEARTBEAT_S": "0.8", "PENNYWEIGHT_SWEEP_S": "1"}


@dataclass
class Report:
    """What happened and what it did. recoveries_s: from an attempt's loss to the next attempt's start."""

    posted: int = 0
    resent: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    ended_twice: int = 0
    wrong_artifacts: int = 0
    orphans_after_sweep: int = 0
    losses: int = 0
    recoveries_s: list[float] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.ended_twice or self.wrong_artifacts or self.orphans_after_sweep)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.recoveries_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    def document(self) -> dict[str, Any]:
        """What `lines` says, as JSON."""
        recoveries = {"count": len(self.recoveries_s), "p50": self.percentile(0.5), "p99": self.percentile(0.99)}
        counts = {name: dict(value) for name, value in vars(self).items() if isinstance(value, Counter)}
        return {**vars(self), **counts, "recoveries_s": recoveries, "good": self.good}

    def lines(self) -> list[str]:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return [
            f"{self.posted} jobs accepted in {self.seconds:.0f} s; requests sent again: {dict(self.resent)}",
            f"troubles: {faults}",
            f"ended: {dict(self.statuses)}, leases lost {self.losses}",
            *(f"  {count} with {error}" for error, count in self.errors.most_common(12)),
            f"lost {self.lost}, ended twice {self.ended_twice}, artifacts wrong {self.wrong_artifacts}, "
            f"orphans after the sweep {self.orphans_after_sweep}",
            f"taken up again after {self.percentile(0.5):.1f} s (p50), {self.percentile(0.99):.1f} s (p99) "
            f"of {len(self.recoveries_s)} interruptions",
        ]


class Chaos:
    """One run. `every_s` is the mean pause between two troubles."""

    def __init__(
        self, fleet: Fleet, postgres: Postgres, redis: Redis, proxy: FaultProxy, seed: int, engine: bool
    ) -> None:
        self._fleet = fleet
        self._engine = engine
        self._postgres = postgres
        self._redis = redis
        self._proxy = proxy
        self._random = random.Random(seed)
        self.report = Report()
        self._quiet = threading.Event()

    def run(self, jobs: int, every_s: float, deadline_s: float) -> Report:
        started = time.monotonic()
        left = iter(range(jobs))
        lock = threading.Lock()

        def post() -> None:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                self._post()

        posters = [threading.Thread(target=post) for _ in range(POSTERS)]
        for thread in posters:
            thread.start()
        while any(thread.is_alive() for thread in posters) or self._unfinished() > jobs // 20:
            if time.monotonic() - started > deadline_s:
                break
            time.sleep(self._random.expovariate(1 / every_s))
            self._trouble()
        for thread in posters:
            thread.join()
        self._heal()
        while self._unfinished() and time.monotonic() - started < deadline_s:
            time.sleep(0.2)
        self.report.seconds = time.monotonic() - started
        self._count()
        return self.report

    # --- jobs

    def _post(self) -> None:
        """Create one job; what is not answered is sent again under the same key, so that it happens once."""
        do = self._random.choice(["succeed", "succeed", "wait"])
        form = engine_job_form() if self._engine else job_form(do, seconds=self._random.choice([0.2, 0.5, 1.0]))
        key = f"chaos-{self._random.getrandbits(96):x}"
        while True:
            try:
                url = f"{self._fleet.api.url}/v1/jobs"
                answer = httpx.post(url, headers={"Idempotency-Key": key}, timeout=30, **form)
                if answer.status_code == 201:
                    self.report.posted += 1
                    return
                self.report.resent[f"status {answer.status_code}"] += 1
            except httpx.HTTPError as error:
                self.report.resent[type(error).__name__] += 1
            time.sleep(0.3)

    def _unfinished(self) -> int:
        live = [status for status in JobStatus if not status.terminal]
        # The database may be just restarting, by our own doing: then nobody knows yet.
        with contextlib.suppress(Exception), self._fleet.database.read() as session:
            return session.scalar(select(func.count()).select_from(Job).where(Job.status.in_(live)))
        return sys.maxsize

    # --- trouble

    def _trouble(self) -> None:
        troubles: list[tuple[int, Callable[[], bool]]] = [
            (6, self.kill_runner),
            (3, self.kill_celery_child),
            (2, self.kill_celery),
            (2, self.kill_worker),
            (2, self.kill_api),
            (2, self.stop_celery_child),
            (1, self.flush_redis),
            (1, self.restart_redis),
            (1, self.restart_postgres),
            (2, self.fail_storage),
        ]
        weights = [weight for weight, _ in troubles]
        _, trouble = self._random.choices(troubles, weights)[0]
        with contextlib.suppress(ProcessLookupError):
            if trouble():
                self.report.faults[trouble.__name__.replace("_", " ")] += 1

    def _worker(self):
        return self._random.choice(self._fleet.workers)

    def _kill_one(self, pids: list[int], number: int = signal.SIGKILL) -> bool:
        if pids:
            os.kill(self._random.choice(pids), number)
        return bool(pids)

    def kill_runner(self) -> bool:
        return self._kill_one(busy_runners(self._worker()))

    def kill_celery_child(self) -> bool:
        return self._kill_one(self._fleet.celery(self._worker())[1:])

    def kill_celery(self) -> bool:
        return self._kill_one(self._fleet.celery(self._worker())[:1])

    def kill_worker(self) -> bool:
        worker = self._worker()
        worker.kill()
        worker.start()
        return True

    def kill_api(self) -> bool:
        self._fleet.api.kill()
        self._fleet.api.start()
        return True

    def stop_celery_child(self) -> bool:
        children = self._fleet.celery(self._worker())[1:]
        if not children:
            return False
        pid = self._random.choice(children)
        os.kill(pid, signal.SIGSTOP)
        timer = threading.Timer(STOPPED_S, lambda: _continue(pid))
        timer.daemon = True
        timer.start()
        return True

    def flush_redis(self) -> bool:
        self._redis.flush()
        return True

    def restart_redis(self) -> bool:
        self._redis.kill()
        time.sleep(1)
        self._redis.start()
        return True

    def restart_postgres(self) -> bool:
        self._postgres.kill() if self._random.random() < 0.5 else self._postgres.stop()
        self._postgres.start()
        return True

    def fail_storage(self) -> bool:
        self._proxy.mode = self._random.choice(["slow", "cut", "absent"])
        time.sleep(FAULT_S)
        self._proxy.mode = "well"
        return True

    def _heal(self) -> None:
        self._proxy.mode = "well"

    # --- what became of it

    def _count(self) -> None:
        report, database = self.report, self._fleet.database
        report.orphans_after_sweep = self._orphans()
        with database.read() as session:
            jobs = session.scalars(select(Job)).all()
            report.lost = report.posted - sum(job.status.terminal for job in jobs)
            report.statuses = Counter(job.status.value for job in jobs)
            report.errors = Counter(
                f"{job.error['code']}: {_ID.sub('…', job.error['message'])}" for job in jobs if job.error
            )
            report.losses = session.scalar(select(func.sum(Work.losses))) or 0
            ends = session.execute(
                select(JobEvent.job_id, func.count()).where(JobEvent.type.in_(ENDS)).group_by(JobEvent.job_id)
            ).all()
            report.ended_twice = sum(count != 1 for _, count in ends)
            keys = dict(session.execute(select(Artifact.job_id, Artifact.object_key)).all())
            succeeded = {job.id: job.attempt for job in jobs if job.status is JobStatus.succeeded}
            report.wrong_artifacts = sum(
                f"/{succeeded.get(job_id)}/" not in key.removeprefix(f"tenants/local/jobs/{job_id}")
                for job_id, key in keys.items()
            )
            events = session.execute(
                select(JobEvent.job_id, JobEvent.type, JobEvent.data, JobEvent.at).order_by(
                    JobEvent.job_id, JobEvent.seq
                )
            ).all()
        lost_at: dict[str, float] = {}
        for job_id, type, data, at in events:
            if type == "job.queued" and data.get("reason") == "worker_lost":
                lost_at[job_id] = at.timestamp()
            elif type == "job.running" and job_id in lost_at:
                report.recoveries_s.append(at.timestamp() - lost_at.pop(job_id))

    def _orphans(self) -> int:
        """What is still stored and belongs to nothing, after one sweep that looks at everything."""
        remove_orphans(self._fleet.database, self._fleet.objects, older_than_s=-60)
        return remove_orphans(self._fleet.database, self._fleet.objects, older_than_s=-60)


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def run(
    jobs: int, workers: int, slots: int, seed: int, every_s: float, deadline_s: float, *, engine: bool = False
) -> Report:
    """Everything from the first server to the last count."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pennyweight-chaos-")))
        folder.chmod(0o755)
        postgres, redis = stack.enter_context(Postgres()), stack.enter_context(Redis())
        stack.enter_context(s3_environment())
        proxy = stack.enter_context(FaultProxy(stack.enter_context(moto_endpoint())))
        storage_url = f"s3://{BUCKET}?endpoint={proxy.url}"
        urls = create_database(postgres.url()), storage_url, redis.url()
        fleet = Fleet(folder, *urls, scripted=not engine, slots=slots, environment=TIMING)
        stack.callback(fleet.close)
        for _ in range(workers - 1):
            fleet.add_worker()
        return Chaos(fleet, postgres, redis, proxy, seed, engine).run(jobs, every_s, deadline_s)


def main() -> int:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request to moto
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=2, help="jobs at a time on each worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=2.0, help="mean seconds between two troubles")
    parser.add_argument(
        "--deadline", type=float, default=3600.0, help="seconds after which what is left counts as lost"
    )
    parser.add_argument("--engine", action="store_true", help="compress a small network in every job")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    given = parser.parse_args()
    report = run(given.jobs, given.workers, given.slots, given.seed, given.every, given.deadline, engine=given.engine)
    print("\n".join(report.lines()))
    if given.json is not None:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        given.json.write_text(
            json.dumps({"settings": settings, "timing": TIMING, **report.document()}, indent=2) + "\n"
        )
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
