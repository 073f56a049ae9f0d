"""The schema is what the migrations build, and the connection settings are what the store relies on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from store import work
from store.contract import JobStatus
from store.database import Database
from store.errors import NotFound, SchemaOutdated
from store.gpu_time import used_s
from store.jobs import JobRepository
from store.tables import LOCAL_TENANT, Base, GpuRun, Job, Tenant, Worker
from tests.databases import DIALECTS
from tests.store.house import House

ROOT = Path(__file__).parents[2]


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url)
    yield database
    database.dispose()


def _tables(database: Database) -> set[str]:
    with database.read() as session:
        return set(inspect(session.connection()).get_table_names())


def test_migrations_go_up_down_and_up_again_from_any_folder(
    empty: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = {*Base.metadata.tables, "alembic_version"}
    empty.migrate()
    assert _tables(empty) == expected
    empty.migrate("base")
    assert _tables(empty) == {"alembic_version"}
    empty.migrate()
    empty.migrate()
    assert _tables(empty) == expected
    empty.check_schema()


def test_work_of_an_older_version_survives_the_way_up_and_back(house: House) -> None:
    model = house.add_model()
    job = house.add_job(model, labels={"team": "a"})
    plan = house.add_plan(model)
    house.database.migrate("0001")
    with house.database.read() as session:
        assert session.execute(text("SELECT id, kind, state FROM work WHERE state = 'queued'")).all() == [
            (job, "job", "queued")
        ]
        assert "plans" not in inspect(session.connection()).get_table_names()
    with pytest.raises(SchemaOutdated, match=r"0001.*pennyweightd migrate"):
        house.database.check_schema()
    house.database.migrate()
    with house.database.read() as session:
        found = JobRepository(session, LOCAL_TENANT).list(JobStatus.queued, {"team": "a"})
        assert [row.id for row in found.rows] == [job]
    assert (house.claim().id, house.job(job).attempt) == (job, 1)
    with pytest.raises(NotFound):
        house.plan(plan)


def test_gpu_time_that_was_used_before_it_was_counted_is_counted_afterwards(house: House) -> None:
    model = house.add_model()
    ran, runs, waits = (house.add_job(model, device="gpu") for _ in range(3))
    work.release(house.database, house.claim(id=ran, queues={"gpu"}))
    house.cancel(ran)
    house.claim(id=runs, queues={"gpu"})
    with house.database.transaction() as session:
        started_at = house.database.now(session) - timedelta(seconds=70)
        session.execute(update(Job).where(Job.id.in_([ran, runs])).values(started_at=started_at))
    house.database.migrate("0011")
    house.database.migrate()
    with house.database.read() as session:
        counted = session.execute(select(GpuRun.job_id, GpuRun.attempt, GpuRun.tenant_id)).all()
        assert counted == [(ran, 1, LOCAL_TENANT)]
        assert session.scalars(select(GpuRun.seconds)).one() == pytest.approx(70, abs=5)
        assert used_s(session, LOCAL_TENANT) == pytest.approx(140, abs=10)
        assert (house.job(runs).device, house.job(waits).device) == ("gpu", None)


def test_the_tables_in_the_code_are_the_tables_that_migrations_build(house: House) -> None:
    with house.database.read() as session:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_every_constraint_has_a_name_so_that_batch_migrations_can_find_it(house: House) -> None:
    with house.database.read() as session:
        inspector = inspect(session.connection())
        for table in Base.metadata.tables:
            named = [
                *inspector.get_foreign_keys(table),
                *inspector.get_unique_constraints(table),
                *inspector.get_check_constraints(table),
                inspector.get_pk_constraint(table),
            ]
            assert all(constraint["name"] for constraint in named), table


def test_an_empty_schema_is_refused_with_the_command_that_repairs_it(empty: Database) -> None:
    with pytest.raises(SchemaOutdated, match=r"empty.*`pennyweightd migrate`"):
        empty.check_schema()


def test_a_newer_schema_is_refused_without_advice_to_migrate(house: House) -> None:
    with house.database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    with pytest.raises(SchemaOutdated, match="newer version of Pennyweight") as refused:
        house.database.check_schema()
    assert "migrate" not in str(refused.value)


def test_two_processes_may_migrate_at_once(empty_url: str) -> None:
    script = "import sys; from store.database import Database; Database(sys.argv[1]).migrate()"
    processes = [subprocess.Popen([sys.executable, "-c", script, empty_url], cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    database = Database(empty_url)
    database.check_schema()
    with database.read() as session:
        assert session.scalars(select(Tenant.id)).all() == [LOCAL_TENANT]
    database.dispose()


def test_a_failing_migration_changes_nothing(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the power went out")

    monkeypatch.setattr("store.dialect.check_migration", fail)
    with pytest.raises(RuntimeError, match="power"):
        empty.migrate()
    assert _tables(empty) == set()


def test_foreign_keys_are_enforced_also_on_a_connection_after_a_migration(house: House) -> None:
    house.database.migrate()
    with pytest.raises(IntegrityError), house.database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO api_keys (id, tenant_id, name, prefix, sha256, scope, created_at) "
                "VALUES ('k', 'nobody', 'n', 'p', 's', 'read', '2026-01-01 00:00:00.000000')"
            )
        )


def test_unknown_statuses_do_not_enter_the_database(house: House) -> None:
    house.add_model()
    with pytest.raises(IntegrityError, match="status_known"), house.database.transaction() as session:
        session.execute(text("UPDATE models SET status = 'excellent'"))


def test_a_read_sees_one_snapshot_and_cannot_write(house: House) -> None:
    with house.database.read() as session:
        before = session.scalars(select(Worker.id)).all()
        with house.database.transaction() as writer:
            writer.add(_worker("w1", datetime.now(UTC)))
        assert session.scalars(select(Worker.id)).all() == before == []
        with pytest.raises(DBAPIError, match=r"read-?only"):
            session.execute(text("DELETE FROM workers"))
    with house.database.transaction() as session:  # the same pooled connection writes again
        assert session.scalars(select(Worker.id)).all() == ["w1"]
        session.execute(text("DELETE FROM workers"))


def test_a_look_sees_what_is_committed_by_now_and_cannot_write(house: House) -> None:
    workers = select(Worker.id).order_by(Worker.id)
    for count in range(20):
        assert len(house.database.look(lambda connection: connection.scalars(workers).all())) == count
        with house.database.transaction() as writer:
            writer.add(_worker(f"w{count:02}", datetime.now(UTC)))
    with pytest.raises(DBAPIError, match=r"read-?only"):
        house.database.look(lambda connection: connection.execute(text("DELETE FROM workers")))


if "postgresql" in DIALECTS:  # files have no server that could close anything

    @pytest.mark.parametrize("dialect_name", ["postgresql"], indirect=True, scope="session")
    def test_a_look_through_a_connection_that_the_server_has_closed_takes_another(house: House) -> None:
        own = select(func.pg_backend_pid())
        for _ in range(3):
            first = house.database.look(lambda connection: connection.scalar(own))
            with house.database.read() as session:
                assert session.scalar(select(func.pg_terminate_backend(first)))
            time.sleep(0.1)
            assert house.database.look(lambda connection: connection.scalar(own)) != first


def test_an_exception_rolls_the_whole_transaction_back(house: House) -> None:
    with pytest.raises(KeyError), house.database.transaction() as session:
        session.add(_worker("w1", datetime.now(UTC)))
        session.flush()
        raise KeyError
    with house.database.read() as session:
        assert session.scalars(select(Worker.id)).all() == []


@pytest.mark.parametrize("dialect_name", ["sqlite"], indirect=True, scope="session")
def test_a_second_writer_waits_instead_of_failing_after_its_read(house: House) -> None:
    first_reads, order = threading.Event(), []

    def second() -> None:
        first_reads.wait(10)
        with house.database.transaction() as session:
            order.append(("second saw", session.scalars(select(Worker.id)).all()))

    thread = threading.Thread(target=second)
    thread.start()
    with house.database.transaction() as session:
        assert session.scalars(select(Worker.id)).all() == []
        first_reads.set()
        time.sleep(0.2)
        session.add(_worker("w1", datetime.now(UTC)))
        order.append(("first wrote", []))
    thread.join(10)
    assert order == [("first wrote", []), ("second saw", ["w1"])]


def test_database_time_is_utc_with_subsecond_resolution(house: House) -> None:
    moments = []
    for _ in range(3):
        with house.database.read() as session:
            moments.append(house.database.now(session))
        time.sleep(0.005)
    assert moments[0] < moments[1] < moments[2]
    assert abs((datetime.now(UTC) - moments[2]).total_seconds()) < 5
    assert moments[0].tzinfo is UTC


def test_timestamps_come_back_as_they_went_in_and_naive_ones_are_refused(house: House) -> None:
    moment = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)
    with house.database.transaction() as session:
        session.add(_worker("w1", moment))
    with house.database.read() as session:
        assert session.get_one(Worker, "w1").published_at == moment
    with pytest.raises(StatementError, match="time zone"), house.database.transaction() as session:
        session.add(_worker("w2", moment.replace(tzinfo=None)))


def test_urls_that_cannot_work_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="must be a file"):
        Database("sqlite://")
    with pytest.raises(ValueError, match="sqlite: or postgresql:"):
        Database("mysql://localhost/db")


def _worker(id: str, published_at: datetime) -> Worker:
    return Worker(id=id, version="1", catalogue={}, published_at=published_at, seen_at=published_at)
