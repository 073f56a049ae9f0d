"""Counters in the database: exact whoever counts at once, in any order."""

from __future__ import annotations

import threading

from store import tallies
from store.database import Database
from store.tallies import TallyName
from tests.store.house import House

THREADS, ROUNDS = 6, 20


def totals(house: House) -> dict[tuple[str, str], float]:
    with house.database.read() as session:
        return {(row.name.value, str(sorted(row.labels.items()))): row.value for row in tallies.read(session)}


def test_counts_of_many_processes_at_once_are_all_there_and_nobody_waits_for_ever(house: House):
    def count(index: int) -> None:
        database = Database(house.url)
        for round in range(ROUNDS):
            with database.transaction() as session:
                for kind in ("job", "plan") if (index + round) % 2 else ("plan", "job"):
                    tallies.count(session, TallyName.lost_leases, kind=kind)
                tallies.observe(session, TallyName.stage, 0.3, stage="plan")
        database.dispose()

    threads = [threading.Thread(target=count, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    found = totals(house)
    for kind in ("job", "plan"):
        assert found["lost_leases", f"[('kind', '{kind}')]"] == THREADS * ROUNDS
    assert found["stage_seconds", "[('le', '0.5'), ('stage', 'plan')]"] == THREADS * ROUNDS
    assert round(found["stage_seconds", "[('le', 'sum'), ('stage', 'plan')]"], 6) == THREADS * ROUNDS * 0.3


def test_durations_fall_into_the_first_bucket_that_holds_them(house: House):
    with house.database.transaction() as session:
        for seconds in (0, 0.1, 0.11, 43200, 43201, -5):
            tallies.observe(session, TallyName.job_run, seconds, status="failed")
    found = {labels: value for (name, labels), value in totals(house).items() if name == "job_run_seconds"}
    assert found["[('le', '0.1'), ('status', 'failed')]"] == 3
    assert found["[('le', '0.25'), ('status', 'failed')]"] == 1
    assert found["[('le', '43200'), ('status', 'failed')]"] == 1
    assert found["[('le', '+Inf'), ('status', 'failed')]"] == 1
