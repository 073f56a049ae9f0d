"""An attempt that has lost its lease writes nothing any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from store import work
from store.claims import Claim
from store.contract import JobProgress, JobStatus, WorkKind
from store.errors import LeaseLost
from store.tables import Base
from tests.store.house import LEASE_S, UNMET, UNSAFE, House, artifact, inspected_model, job_result, lose, plan_outcome

WRITES: dict[str, Callable[[House, Claim], Any]] = {
    "heartbeat": lambda h, c: work.heartbeat(h.database, c, 60, progress=JobProgress(fraction=1), stage="plan"),
    "finish_job": lambda h, c: work.finish_job(h.database, c, result=job_result(), artifacts=[artifact(c)]),
    "fail_job": lambda h, c: work.fail_job(h.database, c, UNMET),
    "cancel_job": lambda h, c: work.cancel_job(h.database, c),
    "release": lambda h, c: work.release(h.database, c),
    "lose": lambda h, c: work.lose(h.database, c),
}
PLAN_WRITES: dict[str, Callable[[House, Claim], Any]] = {
    "trouble": lambda h, c: work.trouble(h.database, c, delay_s=0, what="OSError"),
    "finish_plan": lambda h, c: work.finish_plan(h.database, c, plan_outcome()),
}
INSPECTION_WRITES: dict[str, Callable[[House, Claim], Any]] = {
    "heartbeat": WRITES["heartbeat"],
    "release": WRITES["release"],
    "finish_model": lambda h, c: work.finish_model(h.database, c, inspected_model()),
    "reject": lambda h, c: work.reject(h.database, c, UNSAFE),
}


def _everything(house: House) -> dict[str, list[Any]]:
    with house.database.read() as session:
        return {name: session.execute(table.select()).all() for name, table in Base.metadata.tables.items()}


@pytest.mark.parametrize("now_held_by", ["nobody", "another worker", "the same worker", "the end"])
@pytest.mark.parametrize("write", WRITES)
def test_a_stale_attempt_of_a_job_writes_nothing(house: House, write: str, now_held_by: str) -> None:
    house.add_job(house.add_model())
    stale = house.claim(worker_id="first")
    lose(house, stale)
    if now_held_by == "another worker":
        house.claim(worker_id="second")
    elif now_held_by == "the same worker":
        house.claim(worker_id="first")
    elif now_held_by == "the end":
        work.finish_job(house.database, house.claim(worker_id="second"), result=job_result(), artifacts=[])
    before = _everything(house)
    with pytest.raises(LeaseLost) as lost:
        WRITES[write](house, stale)
    assert (lost.value.id, lost.value.attempt, lost.value.worker_id) == (stale.id, 1, "first")
    assert _everything(house) == before


@pytest.mark.parametrize("write", INSPECTION_WRITES)
def test_a_stale_attempt_of_an_inspection_writes_nothing(house: House, write: str) -> None:
    model = house.add_model(ready=False)
    house.add_job(model)
    stale = house.claim(worker_id="first")
    lose(house, stale)
    house.claim(worker_id="second", id=model)
    before = _everything(house)
    with pytest.raises(LeaseLost):
        INSPECTION_WRITES[write](house, stale)
    assert _everything(house) == before


@pytest.mark.parametrize("write", ["heartbeat", "release", "lose", "trouble", "finish_plan", "reject"])
def test_a_stale_attempt_of_a_plan_writes_nothing(house: House, write: str) -> None:
    plan = house.add_plan(house.add_model())
    stale = house.claim(WorkKind.plan, id=plan)
    lose(house, stale)
    house.claim(WorkKind.plan, id=plan)
    before = _everything(house)
    with pytest.raises(LeaseLost):
        {**WRITES, **INSPECTION_WRITES, **PLAN_WRITES}[write](house, stale)
    assert _everything(house) == before


def test_a_restarted_process_takes_back_at_once_what_its_predecessor_held(house: House) -> None:
    model = house.add_model()
    jobs = [house.add_job(model) for _ in range(4)]
    inspected = house.add_model(ready=False)
    owners = ["data_1:job", "data_1:job", "data_10:job", "Data_1:job"]
    claims = [house.claim(WorkKind.job, worker_id=owner) for owner in owners]
    house.claim(WorkKind.inspect_model, worker_id="data_1:short")
    assert work.release_owner(house.database, "data_1:") == 3
    assert [house.job(id).status for id in jobs] == [JobStatus.queued] * 2 + [JobStatus.running] * 2
    for claim in claims[:2]:
        with pytest.raises(LeaseLost):
            work.heartbeat(house.database, claim, LEASE_S)
    for claim in claims[2:]:
        work.heartbeat(house.database, claim, LEASE_S)
    assert {house.claim().id for _ in range(3)} == {*jobs[:2], inspected}
    with pytest.raises(ValueError, match="empty prefix"):
        work.release_owner(house.database, "")
