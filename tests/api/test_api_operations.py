"""Health, readiness, the catalogue, the documents about the API, and what every answer has in common."""

from __future__ import annotations

import logging
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from datetime import timedelta

import anyio
import jsonschema
import psycopg
import pytest
from fastapi import APIRouter
from sqlalchemy import create_engine, update
from sqlalchemy.exc import OperationalError

from api import app as app_module
from api.app import create_app
from store.catalogue import CatalogueRepository
from store.database import Database, is_down
from store.errors import SchemaOutdated
from store.settings import Settings
from store.tables import Worker
from tests.api.conftest import CATALOGUE, listening, problem


def test_ready_names_the_worker_that_is_missing_and_then_what_it_can_do(service):
    before = service.client.get("/readyz")
    assert (before.status_code, before.json()["status"]) == (200, "degraded")
    assert before.json()["worker"]["status"] == "missing"
    service.publish(CATALOGUE)
    ready = service.client.get("/readyz").json()
    assert (ready["status"], ready["database"]["status"], ready["objects"]["status"]) == ("ready", "ok", "ok")
    assert ready["worker"]["devices"] == ["cpu"]
    assert (ready["worker"]["sandbox_level"], ready["worker"]["sandbox_kind"]) == (2, "bubblewrap")
    assert service.stored_files() == []


def test_a_worker_that_has_fallen_silent_is_stale_until_it_is_heard_of_again(service):
    service.publish(CATALOGUE)
    with service.database.transaction() as session:
        session.execute(update(Worker).values(seen_at=service.database.now(session) - timedelta(seconds=100)))
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    worker = answer.json()["worker"]
    assert worker["status"] == "stale" and re.search(r"\b1\d\d s", worker["detail"])
    with service.database.transaction() as session:
        CatalogueRepository(session).seen("worker")
    assert service.client.get("/readyz").json()["status"] == "ready"


def test_not_ready_names_the_part_that_is_down(service):
    shutil.rmtree(service.settings.data_dir / "objects")
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unready")
    assert answer.json()["objects"]["status"] == "down"
    assert answer.json()["database"]["status"] == "ok"
    assert service.client.get("/healthz").json() == {"status": "ok"}


def test_catalogue_is_empty_before_the_first_worker_and_paged_after(service):
    assert service.client.get("/v1/methods").json() == {"object": "list", "has_more": False, "next": None, "data": []}
    service.publish(CATALOGUE)
    methods = service.client.get("/v1/methods").json()["data"]
    assert [method["type"] for method in methods] == ["auto", "magnitude"]
    assert methods[1]["schema"]["properties"]["round_to"] == {"type": "integer", "minimum": 1}
    first = service.client.get("/v1/architectures", params={"limit": 2}).json()
    assert [one["name"] for one in first["data"]] == ["cifar_resnet", "cifar_resnet20"]
    rest = service.client.get("/v1/architectures", params={"limit": 2, "after": first["next"]}).json()
    assert [one["name"] for one in rest["data"]] == ["cifar_resnet56"]
    assert (rest["has_more"], rest["next"]) == (False, None)
    found = service.client.get("/v1/architectures", params={"search": "RESNET 5"}).json()["data"]
    assert [one["name"] for one in found] == ["cifar_resnet56"]


def test_unknown_route_is_a_problem(client):
    problem(client.get("/v1/nothing"), 404, "not_found")
    problem(client.get("/v1/jobs/"), 404, "not_found")
    problem(client.get("/v1/jobs/job_%00"), 404, "not_found")
    problem(client.get("/v1/jobs?after=%00"), 400, "bad_request")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("PATCH", "/jobs/job_1", "DELETE, GET, HEAD"),
        ("GET", "/v1/jobs/job_1/cancel", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/v1/methods", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_wrong_method_names_the_right_ones(client, method, path, allowed):
    answer = client.request(method, path)
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_request_id_is_taken_over_or_made(client):
    assert client.get("/healthz", headers={"X-Request-Id": "trace-1.2:3"}).headers["x-request-id"] == "trace-1.2:3"
    for bad in ("a b", "x" * 129, "<script>"):
        made = client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{24}", made)


def test_failure_of_ours_is_a_500_that_tells_only_the_request_id(service, monkeypatch, caplog):
    broken = APIRouter()

    @broken.get("/broken", include_in_schema=False)
    def fail() -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(app_module, "UNVERSIONED", (*app_module.UNVERSIONED, broken))
    app = create_app(service.settings, service.database, service.objects)
    with listening(app) as url:
        answer = service.client.get(f"{url}/broken", headers={"X-Request-Id": "find-me"})
    document = problem(answer, 500, "internal")
    assert document["request_id"] == "find-me"
    assert "secret" not in answer.text
    assert "find-me" in caplog.text and "secret internals" in caplog.text


def test_a_database_that_does_not_answer_is_a_503_that_says_when_to_come_again(service, monkeypatch, caplog):
    """One that a connection is refused by, one that breaks off, and a file that somebody holds; not a statement of ours."""
    nobody = Database("postgresql://nobody@127.0.0.1:9/none")
    monkeypatch.setattr(Database, "read", lambda self: nobody.transaction())
    for path in ("/v1/jobs", "/v1/models/mdl_1"):
        answer = service.client.get(path, headers={"X-Request-Id": "find-me"})
        assert problem(answer, 503, "unavailable")["detail"].startswith("The database does not work at the moment")
        assert answer.headers["Retry-After"] == "5"
    assert "127.0.0.1" not in answer.text and "port 9 failed" in caplog.text and "find-me" in caplog.text
    monkeypatch.undo()
    assert service.client.get("/v1/jobs").status_code == 200


def test_what_a_database_says_when_it_is_down(tmp_path):
    path = tmp_path / "held.db"
    with sqlite3.connect(path) as holder:
        holder.execute("CREATE TABLE t (a)")
        holder.execute("BEGIN IMMEDIATE")
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.01})
        with pytest.raises(OperationalError) as held, engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        with pytest.raises(OperationalError) as ours, engine.begin() as connection:
            connection.exec_driver_sql("SELECT * FROM nothing")
    assert is_down(held.value) and not is_down(ours.value) and not is_down(RuntimeError("connection refused"))
    for kind, down in ((psycopg.errors.AdminShutdown, True), (psycopg.errors.TooManyConnections, True),
                       (psycopg.errors.CannotConnectNow, True), (psycopg.errors.DeadlockDetected, False)):  # fmt: skip
        assert is_down(OperationalError("SELECT 1", {}, kind("said"))) is down


def logged(caplog, lines: int) -> None:
    """Wait for so many lines: a request is logged after its answer, which the client may have first."""
    deadline = time.monotonic() + 10
    while len(told(caplog)) < lines and time.monotonic() < deadline:
        time.sleep(0.01)


def told(caplog) -> list[logging.LogRecord]:
    """What was logged, but for what made things ready: its lines may come late, too."""
    return [record for record in caplog.records if " 201 " not in record.getMessage()]


def test_log_tells_of_changes_and_of_refusals_and_not_of_every_poll(service, caplog):
    job = service.job()["id"]
    with caplog.at_level(logging.INFO, logger="api"):
        for path in ("/healthz", "/readyz", f"/v1/jobs/{job}", "/v1/jobs"):
            assert service.client.get(path).status_code == 200
        service.client.get(f"/v1/jobs/{job}", headers={"If-None-Match": "*"})
        service.client.get("/v1/jobs/job_nowhere")
        service.client.post(f"/v1/jobs/{job}/cancel")
        logged(caplog, 2)
    lines = [record.getMessage() for record in told(caplog)]
    assert [line.split(" ")[:3] for line in lines] == [
        ["GET", "/v1/jobs/job_nowhere", "404"],
        ["POST", f"/v1/jobs/{job}/cancel", "200"],
    ]


def test_every_request_is_logged_where_that_is_asked_for(serve, caplog):
    with serve(log_polls=True) as service, caplog.at_level(logging.INFO, logger="api"):
        service.client.get("/v1/jobs/job_nowhere")
        service.client.get("/v1/jobs")
        logged(caplog, 2)
    told = [record.fields for record in caplog.records]
    assert [(line["route"], line["status"]) for line in told] == [("/v1/jobs/{job_id}", 404), ("/v1/jobs", 200)]
    assert told[0]["job_id"] == "job_nowhere"
    assert all(line["duration_ms"] > 0 for line in told)


def test_path_cannot_forge_a_line_of_the_log(client, caplog):
    with caplog.at_level(logging.INFO, logger="api"):
        client.get("/v1/x%0A2026-11-21%20INFO%20api:%20all%20is%20well%1B[2J")
        logged(caplog, 1)
    (line,) = [record.getMessage() for record in caplog.records if "all" in record.getMessage()]
    assert line.startswith("GET /v1/x%0A2026-11-21%20INFO%20api:%20all%20is%20well%1B%5B2J 404")


def test_doorbell_that_fails_does_not_fail_the_request(service, caplog):
    def broken_bell() -> None:
        raise ConnectionError("no broker")

    app = create_app(service.settings, service.database, service.objects, wake=broken_bell)
    with listening(app) as url:
        answer = service.client.post(f"{url}/v1/models", files={"file": ("a.pt", b"1")})
    assert answer.status_code == 201
    assert "no broker" in caplog.text


def test_openapi_document_is_complete(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    references = set(re.findall(r"#/components/schemas/(\w+)", client.get("/openapi.json").text))
    assert references <= set(document["components"]["schemas"])
    assert not [path for path in document["paths"] if not path.startswith(("/v1/", "/healthz", "/readyz", "/metrics"))]
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "application/problem+json" in operation["responses"]["422"]["content"]


def test_documentation_page_needs_nothing_from_elsewhere(client):
    assert client.get("/").headers["location"] == "/docs"
    page = client.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "/v1/jobs/{job_id}/cancel" in page.text
    assert not re.findall(r'(?:src|href)\s*=\s*["\']?https?:', page.text)
    assert "<script" not in page.text


def test_starting_on_an_old_schema_names_the_command(tmp_path):
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.resolved_database_url)
    app = create_app(settings, database)

    async def start() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(SchemaOutdated, match="pennyweightd migrate"):
        anyio.run(start)
    database.dispose()


def test_api_process_never_imports_torch_or_the_engine():
    code = "import sys, api.app; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'core', 'worker', 'numpy'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
