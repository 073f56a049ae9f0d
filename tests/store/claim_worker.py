"""A worker process for the multi-process test: claims and finishes jobs until told to end, and now and then dies.

Arguments: database URL, worker id, lease in seconds, a file whose appearance means the end. What happens to a job is
written in its label `fate`, and happens on its first attempt only: `kill` dies with the claim in its hands, `stall`
waits until the lease is lost and then tries to finish all the same. Prints one line per such attempt.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import select

from store import work
from store.claims import Claim, StoredArtifact
from store.contract import WorkKind
from store.database import Database
from store.errors import LeaseLost
from store.tables import Work
from tests.store.house import job_result


def main(url: str, worker_id: str, lease_s: float, end: Path) -> None:
    database = Database(url)
    while not end.exists():
        claim = work.claim(database, worker_id=worker_id, kinds={WorkKind.job}, queues={"cpu"}, lease_s=lease_s)
        if claim is None:
            time.sleep(0.02)
            continue
        fate = claim.subject.request["labels"].get("fate") if claim.attempt == 1 else None
        if fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "stall":
            wait_until_lost(database, claim)
        artifact = StoredArtifact(
            name=f"by-attempt-{claim.attempt}",
            media_type="text/plain",
            size=1,
            sha256="00" * 32,
            object_key=claim.object_key("model.onnx"),
        )
        try:
            work.heartbeat(database, claim, lease_s, stage="deliver")
            work.finish_job(database, claim, result=job_result(), artifacts=[artifact])
            outcome = "finished"
        except LeaseLost:
            outcome = "fenced"
        print(claim.id, claim.attempt, fate, outcome, flush=True)


def wait_until_lost(database: Database, claim: Claim) -> None:
    while True:
        with database.read() as session:
            owner, attempt = session.execute(select(Work.lease_owner, Work.attempt).where(Work.id == claim.id)).one()
        if (owner, attempt) != (claim.worker_id, claim.attempt):
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
