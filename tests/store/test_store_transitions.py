"""The statuses of a job: which one may follow which."""

from __future__ import annotations

import itertools

import pytest

from store.contract import JobStatus
from store.errors import IllegalTransition
from store.tables import Job
from store.transitions import TRANSITIONS, transition
from tests.store.house import House


@pytest.mark.parametrize(("current", "to"), list(itertools.product(JobStatus, JobStatus)))
def test_a_status_changes_as_the_table_says_and_in_no_other_way(
    house: House, current: JobStatus, to: JobStatus
) -> None:
    id = house.add_job(house.add_model())
    with house.database.transaction() as session:
        job = session.get_one(Job, id)
        job.status = current
        now = house.database.now(session)
        if to in TRANSITIONS[current]:
            transition(session, job, to, now=now)
            assert (job.status, job.version, job.last_event_seq) == (to, 2, 2)
            assert (job.finished_at == now) == to.terminal
        else:
            with pytest.raises(IllegalTransition, match=f"from {current.value} to {to.value}"):
                transition(session, job, to, now=now)
            assert (job.status, job.version, job.last_event_seq) == (current, 1, 1)


def test_terminal_statuses_lead_nowhere_and_every_other_one_leads_to_an_end() -> None:
    for status in JobStatus:
        assert bool(TRANSITIONS[status]) != status.terminal
    reachable = {JobStatus.queued}
    for _ in JobStatus:
        reachable |= set().union(*(TRANSITIONS[status] for status in reachable))
    assert reachable == set(JobStatus)
