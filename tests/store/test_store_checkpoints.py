"""A job has one checkpoint, of its latest attempt, which the next attempt is given and which goes when the job ends."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from store import work
from store.checkpoints import FORGIVING_ATTEMPTS, drop_checkpoints, note_resumed, record_checkpoint
from store.claims import Claim, StoredCheckpoint
from store.contract import ErrorCode, ErrorInfo, JobStatus, WorkKind
from store.errors import LeaseLost
from store.jobs import JobRepository
from store.layout import artifact_key, checkpoint_key, owner_of
from store.objects import LocalObjects, StoredObject
from store.orphans import remove_orphans
from store.tables import LOCAL_TENANT, Work
from tests.store.house import House, job_result
from worker.outputs import ARTIFACT_NAME


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects")


def keep(house: House, objects: LocalObjects, claim: Claim, number: int = 1) -> tuple[StoredObject, str | None]:
    """Store a checkpoint and record it, as a worker does; the object and what is to be deleted."""
    with objects.open_writer(claim.checkpoint_key(number)) as writer:
        writer.write(f"attempt {claim.attempt}, number {number}".encode())
        stored = writer.commit()
    moment = time.time() - 7200
    os.utime(objects._path(stored.key), (moment, moment))
    return stored, record_checkpoint(house.database, claim, stored)


def stored_keys(objects: LocalObjects) -> set[str]:
    return set(objects.keys(older_than_s=-60))


def running_job(house: House) -> Claim:
    house.add_job(house.add_model())
    return house.claim(WorkKind.job)


def test_the_next_attempt_is_given_the_latest_checkpoint_and_the_one_before_is_to_be_deleted(
    house: House, objects: LocalObjects
) -> None:
    first = running_job(house)
    assert first.checkpoint is None
    one, before = keep(house, objects, first, 1)
    assert before is None
    two, before = keep(house, objects, first, 2)
    assert before == one.key
    assert record_checkpoint(house.database, first, two) is None
    work.release(house.database, first)
    second = house.claim(WorkKind.job, id=first.id)
    assert (second.checkpoint.object_key, second.checkpoint.sha256) == (two.key, two.sha256)
    assert (second.attempt, second.checkpoint.attempt) == (2, 1)
    three, before = keep(house, objects, second, 1)
    assert before == two.key and three.key != one.key


def test_a_stale_attempt_neither_replaces_a_checkpoint_nor_says_that_it_resumed(
    house: House, objects: LocalObjects
) -> None:
    stale = running_job(house)
    work.lose(house.database, stale)
    with house.database.transaction() as session:
        session.get_one(Work, stale.id).available_at = house.database.now(session)
    current = house.claim(WorkKind.job, id=stale.id)
    kept, _ = keep(house, objects, current)
    with pytest.raises(LeaseLost):
        keep(house, objects, stale, 9)
    with pytest.raises(LeaseLost):
        checkpoint = StoredCheckpoint(kept.key, kept.sha256, attempt=1, at=house.job(stale.id).created_at)
        note_resumed(house.database, replace(stale, checkpoint=checkpoint), step="x", number=1)
    assert house.job(current.id).checkpoint_key == kept.key
    assert house.job(current.id).resumed_from is None


def test_a_resumed_attempt_says_from_where_and_a_later_one_from_the_beginning_does_not(
    house: House, objects: LocalObjects
) -> None:
    first = running_job(house)
    keep(house, objects, first)
    work.release(house.database, first)
    second = house.claim(WorkKind.job, id=first.id)
    version = house.job(first.id).version
    note_resumed(house.database, second, step="recover_0/training", number=40)
    job = house.job(first.id)
    assert {name: job.resumed_from[name] for name in ("attempt", "step", "number")} == {
        "attempt": 1,
        "step": "recover_0/training",
        "number": 40,
    }
    assert job.resumed_from["at"].endswith("Z") and job.version == version + 1
    assert house.events(first.id)[-1][1] == "job.resumed"
    work.release(house.database, second)
    house.claim(WorkKind.job, id=first.id)
    assert house.job(first.id).resumed_from is None


def test_progress_forgives_lost_workers_but_not_for_ever(house: House, objects: LocalObjects) -> None:
    claim = running_job(house)

    def losses_after_checkpoint(attempt: int) -> int:
        with house.database.transaction() as session:
            row = session.get_one(Work, claim.id)
            row.losses, row.attempt = 2, attempt
        keep(house, objects, replace(claim, attempt=attempt))
        with house.database.read() as session:
            return session.get_one(Work, claim.id).losses

    assert losses_after_checkpoint(FORGIVING_ATTEMPTS - 1) == 0
    assert losses_after_checkpoint(FORGIVING_ATTEMPTS) == 2


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "cancelled in the queue", "lost", "deleted"])
def test_however_a_job_ends_its_checkpoint_is_deleted_and_before_that_it_is_kept(
    house: House, objects: LocalObjects, end: str
) -> None:
    claim = running_job(house)
    stored, _ = keep(house, objects, claim)
    assert drop_checkpoints(house.database, objects) == 0
    assert remove_orphans(house.database, objects, older_than_s=3600) == 0
    match end:
        case "succeeded":
            work.finish_job(house.database, claim, result=job_result(), artifacts=[])
        case "failed":
            work.fail_job(house.database, claim, ErrorInfo(code=ErrorCode.timeout, message="Too slow."))
        case "cancelled":
            house.cancel(claim.id)
            work.cancel_job(house.database, claim)
        case "cancelled in the queue":
            work.release(house.database, claim)
            assert stored.key in stored_keys(objects)
            house.cancel(claim.id)
        case "lost":
            with house.database.transaction() as session:
                session.get_one(Work, claim.id).losses = 2
            work.lose(house.database, claim)
            assert house.job(claim.id).status is JobStatus.failed
        case "deleted":
            house.cancel(claim.id)
            work.cancel_job(house.database, claim)
            with house.database.transaction() as session:
                prefixes = JobRepository(session, LOCAL_TENANT).delete(claim.id)
            for prefix in prefixes:
                objects.delete_prefix(prefix)
    assert drop_checkpoints(house.database, objects) == (0 if end == "deleted" else 1)
    assert stored.key not in stored_keys(objects)
    assert drop_checkpoints(house.database, objects) == 0
    if end != "deleted":
        job = house.job(claim.id)
        assert (job.checkpoint_key, job.checkpoint_size, job.checkpoint_at) == (None, None, None)


def test_one_jobs_checkpoint_can_be_dropped_alone(house: House, objects: LocalObjects) -> None:
    claims = [running_job(house) for _ in range(2)]
    for claim in claims:
        keep(house, objects, claim)
        work.finish_job(house.database, claim, result=job_result(), artifacts=[])
    assert drop_checkpoints(house.database, objects, claims[0].id) == 1
    assert stored_keys(objects) == {claims[1].checkpoint_key(1)}


def test_a_checkpoint_of_an_ended_job_that_no_row_names_is_an_orphan(house: House, objects: LocalObjects) -> None:
    claim = running_job(house)
    keep(house, objects, claim, 1)
    keep(house, objects, claim, 2)  # and the first was never deleted
    work.finish_job(house.database, claim, result=job_result(), artifacts=[])
    drop_checkpoints(house.database, objects)
    assert remove_orphans(house.database, objects, older_than_s=3600) == 1
    assert stored_keys(objects) == set()


def test_a_checkpoint_lies_where_no_artifact_can() -> None:
    key = checkpoint_key("t", "job_1", 2, 3)
    assert owner_of(key).id == "job_1" and not ARTIFACT_NAME.fullmatch(key.rpartition("/")[2])
    assert key.startswith(artifact_key("t", "job_1", 2, ""))
