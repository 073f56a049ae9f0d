"""What KEDA asks the database gives the number of workers that are wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from sqlalchemy import text

from tests.store.house import House

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def query(folder: str) -> str:
    for document in yaml.safe_load_all((FOLDER / folder / "scaling.yaml").read_text()):
        if document["kind"] == "ScaledObject":
            (trigger,) = document["spec"]["triggers"]
            assert trigger["metadata"]["targetQueryValue"] == "1"
            return trigger["metadata"]["query"]
    raise AssertionError(folder)


@pytest.fixture
def wanted(house: House):
    def ask(folder: str) -> int:
        with house.database.read() as session:
            return session.execute(text(query(folder))).scalar_one()

    return ask


def test_an_idle_service_wants_nothing(wanted):
    assert (wanted("base"), wanted("gpu")) == (0, 0)


def test_waiting_and_running_jobs_count_and_ended_ones_do_not(house: House, wanted):
    model = house.add_model()
    jobs = [house.add_job(model) for _ in range(3)]
    assert (wanted("base"), wanted("gpu")) == (3, 0)
    house.claim()
    assert wanted("base") == 3
    for job in jobs[1:]:
        house.cancel(job)
    assert wanted("base") == 1


def test_work_for_a_gpu_wants_a_gpu_and_ten_inspections_want_one_worker(house: House, wanted):
    model = house.add_model()
    house.add_job(model, device="gpu")
    for _ in range(9):
        house.add_model(ready=False)
    assert (wanted("base"), wanted("gpu")) == (0, 1)
    house.add_model(ready=False)
    assert (wanted("base"), wanted("gpu")) == (1, 1)
