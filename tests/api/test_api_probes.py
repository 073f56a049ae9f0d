"""`/readyz` answers in bounded time whatever a part does, and says which part it is."""

from __future__ import annotations

import socket
import threading

from sqlalchemy import text

from api.app import create_app
from store.catalogue import CatalogueRepository
from store.objects import LocalObjects
from tests.api.conftest import CATALOGUE, listening


class HangingObjects(LocalObjects):
    """A store behind a network that drops every packet."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.answers = threading.Event()
        self.asked = 0

    def check(self) -> None:
        self.asked += 1
        assert self.answers.wait(60)
        super().check()


def test_a_part_that_hangs_is_down_in_seconds_and_is_asked_once_at_a_time(serve, tmp_path):
    objects = HangingObjects(tmp_path / "elsewhere")
    with serve(objects=objects) as service:
        for _ in range(3):
            answer = service.client.get("/readyz", timeout=20)
            assert answer.status_code == 503
            document = answer.json()
            assert (document["status"], document["database"]["status"]) == ("unready", "ok")
            assert document["objects"]["status"] == "down"
            assert "has not answered within 2 s" in document["objects"]["detail"]
            assert service.client.get("/healthz").status_code == 200
        assert objects.asked == 1
        objects.answers.set()
        states = (service.client.get("/readyz").json()["objects"]["status"] for _ in range(50))
        assert "ok" in states


def test_an_old_schema_is_told_apart_from_a_database_that_is_down(service):
    with service.database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    answer = service.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["database"]["status"] == "ok"
    assert answer.json()["migrations"]["status"] == "down"
    assert "pennyweightd migrate" in answer.json()["migrations"]["detail"]


def test_a_database_that_is_down_leaves_the_rest_of_its_parts_unknown(service):
    with service.database_lost():
        answer = service.client.get("/readyz")
    assert answer.status_code == 503
    assert {name: answer.json()[name]["status"] for name in ("database", "migrations", "worker", "objects")} == {
        "database": "down",
        "migrations": "unknown",
        "worker": "unknown",
        "objects": "ok",
    }


def test_the_sandbox_level_that_counts_is_the_lowest_of_the_workers_at_work(service):
    service.publish(CATALOGUE)
    with service.database.transaction() as session:
        weaker = CATALOGUE.model_copy(update={"sandbox_level": 1, "sandbox_kind": "process"})
        CatalogueRepository(session).publish("second worker", weaker)
    worker = service.client.get("/readyz").json()["worker"]
    assert (worker["live"], worker["sandbox_level"], worker["sandbox_kind"]) == (2, 1, "process")


def test_without_its_broker_the_service_is_degraded_and_not_unready(service):
    service.publish(CATALOGUE)
    assert (service.client.get("/readyz").json()["queue"]["status"], _status(service)) == ("unused", "ready")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:hidden-word@127.0.0.1:{silent.getsockname()[1]}/0"
        settings = service.settings.model_copy(update={"queue_url": url})
        app = create_app(settings, service.database, service.objects)
        with listening(app) as base:
            answer = service.client.get(f"{base}/readyz", timeout=20)
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["queue"]["status"] == "down"
    assert "hidden-word" not in answer.text


def _status(service) -> str:
    return service.client.get("/readyz").json()["status"]
