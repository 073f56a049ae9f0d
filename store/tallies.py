"""Counters that outlive processes: what happened, counted in the transaction in which it happened.

Several processes and machines do the work and any of them may be killed, so a counter in a process's memory would tell a
part of the truth. `count` and `observe` collect in the session; `write` adds everything up in one statement just before
the commit, in one order, so that two transactions never wait for each other. Each process has a shard of its own rows,
so that busy ones seldom wait for the same row; readers add the shards.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import dialect
from store.tables import Tally

SHARDS = 8
LE = "le"
"""The label that makes a row one bucket of a histogram; `sum` is the row that holds the sum."""
SUM = "sum"
BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200)
"""Upper bounds: from a doorbell that is answered at once to half a day of training."""

_PENDING = "pennyweight_tallies"


class TallyName(StrEnum):
    """Everything that is counted."""

    queue_wait = "queue_wait_seconds"
    job_run = "job_run_seconds"
    stage = "stage_seconds"
    jobs_ended = "jobs_ended"
    gpu_seconds = "gpu_seconds"
    lost_leases = "lost_leases"
    worker_troubles = "worker_troubles"
    webhook_attempts = "webhook_attempts"


@dataclass(frozen=True)
class Row:
    """One row, its shards added up."""

    name: TallyName
    labels: Mapping[str, str]
    value: float


def new_shard() -> int:
    return secrets.randbelow(SHARDS)


def count(session: Session, name: TallyName, amount: float = 1.0, **labels: str) -> None:
    """Add `amount` when this transaction commits. Labels come from small closed sets, never from a user."""
    session.info.setdefault(_PENDING, Counter())[name.value, _text(labels)] += amount


def observe(session: Session, name: TallyName, seconds: float, **labels: str) -> None:
    """Put one duration into a histogram when this transaction commits."""
    seconds = max(0.0, seconds)
    bound = next((f"{bound:g}" for bound in BUCKETS_S if seconds <= bound), "+Inf")
    count(session, name, **labels, **{LE: bound})
    count(session, name, seconds, **labels, **{LE: SUM})


def write(session: Session, shard: int) -> None:
    """Add what this transaction has counted. Called last: these rows are then locked for no longer than the commit takes."""
    pending = session.info.pop(_PENDING, None)
    if not pending:
        return
    rows = [
        {"name": name, "labels": labels, "shard": shard, "value": value}
        for (name, labels), value in sorted(pending.items())
    ]
    statement = dialect.insert(session, Tally).values(rows)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Tally.name, Tally.labels, Tally.shard],
            set_={"value": Tally.value + statement.excluded.value},
        )
    )


def read(session: Session) -> Iterator[Row]:
    """Everything that was ever counted, by name and labels."""
    total = func.sum(Tally.value)
    found = session.execute(
        select(Tally.name, Tally.labels, total).group_by(Tally.name, Tally.labels).order_by(Tally.name, Tally.labels)
    )
    known = {name.value: name for name in TallyName}
    for name, labels, value in found:
        if name in known:  # a newer version may count more
            yield Row(known[name], dict(pair.split("=", 1) for pair in labels.split(",") if pair), float(value))


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
