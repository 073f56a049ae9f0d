"""Filtered lists of jobs: every page of every filter is what going through all jobs would show."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import event, select, text

from store import work
from store.contract import JobStatus
from store.jobs import JobRepository
from store.pages import Order
from store.tables import LOCAL_TENANT, Job, JobLabel
from tests.store.house import OTHER_TENANT, House, job_result


@pytest.fixture
def filled(house: House) -> House:
    """60 jobs of two tenants in four statuses, with labels that are common, rare and together nowhere."""
    models = {tenant: house.add_model(tenant) for tenant in (LOCAL_TENANT, OTHER_TENANT)}
    for index in range(60):
        labels = {"env": "prod" if index % 2 else "test", "team": str(index % 5)} if index % 6 else {}
        tenant = OTHER_TENANT if index % 10 == 9 else LOCAL_TENANT
        job = house.add_job(models[tenant], tenant, labels=labels)
        if tenant == LOCAL_TENANT and index % 4 == 1:
            house.cancel(job)
    for index in range(16):
        claim = house.claim()
        if index % 3:
            work.finish_job(house.database, claim, result=job_result(), artifacts=[])
    return house


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_every_filter_are_what_going_through_all_jobs_shows(filled: House, order: Order) -> None:
    statuses = [None, JobStatus.queued, [JobStatus.succeeded, JobStatus.running], list(JobStatus)]
    labels = [{}, {"env": "prod"}, {"team": "3"}, {"env": "prod", "team": "1"}, {"env": "none", "team": "1"}]
    with filled.database.read() as session:
        everything = session.scalars(select(Job).where(Job.tenant_id == LOCAL_TENANT).order_by(Job.id)).all()
        for status, wanted in itertools.product(statuses, labels):
            among = [status] if isinstance(status, JobStatus) else status or list(JobStatus)
            expected = [row.id for row in everything if row.status in among and wanted.items() <= row.labels.items()]
            found: list[str] = []
            after = None
            while True:
                page = JobRepository(session, LOCAL_TENANT).list(status, wanted, 4, after, order)
                found += [row.id for row in page.rows]
                assert len(page.rows) == 4 or not page.has_more
                if (after := page.next) is None:
                    break
            assert found == (expected if order == "asc" else expected[::-1]), (status, wanted)


def test_labels_say_how_their_job_stands(filled: House) -> None:
    with filled.database.read() as session:
        rows = session.execute(select(JobLabel, Job).join(Job, Job.id == JobLabel.job_id)).all()
    assert {label.status for label, _ in rows} == set(JobStatus) - {JobStatus.failed, JobStatus.cancelling}
    assert all((label.tenant_id, label.status) == (job.tenant_id, job.status) for label, job in rows)


def test_a_page_of_a_label_and_a_status_is_read_from_one_index(filled: House) -> None:
    sent: list[tuple[str, object]] = []
    with filled.database.transaction() as session:
        session.execute(text("ANALYZE job_labels"))  # what is not counted yet costs the same by any index
    with filled.database.read() as session:
        if session.get_bind().dialect.name != "sqlite":
            session.execute(text("SET LOCAL enable_seqscan = off"))  # the tables are small
        connection = session.connection()

        @event.listens_for(connection, "before_cursor_execute")
        def keep(_connection, _cursor, statement, parameters, _context, _many) -> None:
            sent.append((statement, parameters))

        JobRepository(session, LOCAL_TENANT).list([JobStatus.failed], {"team": "3"})
        statement, parameters = sent[0]
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + statement, parameters))
    assert "ix_job_labels_tenant_id_key_value_status_job_id" in plan
    assert "Sort" not in plan and "TEMP B-TREE" not in plan
