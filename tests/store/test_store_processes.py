"""Many processes on one database: what is claimed is claimed once, whoever dies or stalls."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import func, select

from store import work
from store.contract import JobStatus
from store.tables import Artifact, Job, JobEvent
from tests.store.house import House

ROOT = Path(__file__).parents[2]
JOBS = 300
KILLED = range(10, JOBS, 50)
STALLED = range(25, JOBS, 50)
PROCESSES = 4
LEASE_S = 2.0
DEADLINE_S = 240.0


def test_every_job_finishes_exactly_once_although_workers_are_killed_and_stall(house: House, tmp_path: Path) -> None:
    model = house.add_model()
    fates = {**dict.fromkeys(KILLED, "kill"), **dict.fromkeys(STALLED, "stall")}
    jobs = [house.add_job(model, labels={"fate": fates[number]} if number in fates else {}) for number in range(JOBS)]
    end = tmp_path / "end"
    lines = tmp_path / "lines"
    lines.mkdir()

    def start(number: int) -> subprocess.Popen[bytes]:
        # A file for each process: not every file system keeps the appends of two apart.
        arguments = [house.url, f"worker-{number}", str(LEASE_S), str(end)]
        with (lines / str(number)).open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.store.claim_worker", *arguments], cwd=ROOT, stdout=output
            )

    running = [start(number) for number in range(PROCESSES)]
    started, killed = PROCESSES, 0
    try:
        deadline = time.monotonic() + DEADLINE_S
        while _unfinished(house) and time.monotonic() < deadline:
            work.expire_leases(house.database, backoff_s=0.1)
            for slot, process in enumerate(running):
                if process.poll() is not None:
                    assert process.returncode == -9
                    killed += 1
                    running[slot] = start(started)
                    started += 1
            time.sleep(0.05)
    finally:
        end.touch()
        for process in running:
            process.wait(timeout=30)

    assert killed == len(KILLED)
    outcomes = [line.split() for output in lines.iterdir() for line in output.read_text().splitlines()]
    finished = Counter(id for id, _, _, outcome in outcomes if outcome == "finished")
    assert finished == Counter(jobs)
    assert sum(outcome == "fenced" for *_, fate, outcome in outcomes if fate == "stall") == len(STALLED)
    with house.database.read() as session:
        assert session.scalars(select(Job.status).distinct()).all() == [JobStatus.succeeded]
        assert session.scalar(select(func.count()).select_from(Artifact)) == JOBS
        ended = session.scalar(select(func.count()).select_from(JobEvent).where(JobEvent.type == "job.succeeded"))
        assert ended == JOBS
        attempts = dict(session.execute(select(Job.id, Job.attempt)).all())
        winners = dict(session.execute(select(Artifact.job_id, Artifact.name)).all())
    assert winners == {job: f"by-attempt-{attempt}" for job, attempt in attempts.items()}
    assert all(attempts[jobs[number]] >= 2 for number in fates)


def _unfinished(house: House) -> int:
    with house.database.read() as session:
        return session.scalar(
            select(func.count()).select_from(Job).where(Job.status.in_([JobStatus.queued, JobStatus.running]))
        )


def test_writers_in_several_processes_wait_for_one_another(house: House) -> None:
    model = house.add_model()
    script = (
        "import sys; from store.database import Database; from store.jobs import JobRepository\n"
        "from tests.store.house import job_request\n"
        "database = Database(sys.argv[1])\n"
        "for _ in range(30):\n"
        "    with database.transaction() as session:\n"
        "        JobRepository(session, 'local').create(job_request(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", script, house.url, model]
    processes = [subprocess.Popen(arguments, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    with house.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 90
        assert session.scalar(select(func.count()).select_from(JobEvent)) == 90
