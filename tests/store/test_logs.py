"""Log lines: one JSON object each or readable, about what is bound, and without secrets."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator

import pytest
import uvicorn

from store import logs
from store.settings import Settings


@pytest.fixture
def configured() -> Iterator[Callable[..., io.StringIO]]:
    """Configures logging with these settings, into the text that it returns; afterwards it is as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    quiet = {name: logging.getLogger(name).level for name in ("alembic", "uvicorn", "botocore")}

    def configure(**options: object) -> io.StringIO:
        stream = io.StringIO()
        logs.configure(Settings(**options), stream)
        return stream

    yield configure
    root.handlers[:] = before
    root.setLevel(level)
    for name, was in quiet.items():
        logging.getLogger(name).setLevel(was)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_what_is_bound_and_what_it_brings(configured):
    stream = configured(log_format="json")
    with logs.bound(job_id="job_1", attempt=2):
        logs.add(tenant="acme")
        logging.getLogger("worker.attempt").warning("disk at %d %%\nand more", 93, extra={"fields": {"free_bytes": 7}})
    logging.getLogger("worker.attempt").warning("unrelated")
    first, second = lines(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning",
        "logger": "worker.attempt",
        "message": "disk at 93 %\nand more",
        "job_id": "job_1",
        "attempt": 2,
        "tenant": "acme",
        "free_bytes": 7,
    }
    assert "job_id" not in second


def test_exceptions_are_part_of_their_one_json_line(configured):
    stream = configured(log_format="json")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("x").exception("It failed.")
    (line,) = lines(stream)
    assert line["exception"].splitlines()[-1] == "ValueError: no"


def test_console_line_says_what_is_bound_once(configured):
    stream = configured()
    with logs.bound(job_id="job_1", request_id="req_7"):
        logging.getLogger("api").info("POST /v1/jobs 201 [req_7]")
    assert stream.getvalue().rstrip().endswith("INFO api: POST /v1/jobs 201 [req_7] [job_id=job_1]")


def test_libraries_go_through_the_same_formatter_and_quiet_ones_stay_quiet(configured):
    uvicorn.Config("nothing:at_all")  # which brings handlers of its own
    stream = configured(log_format="json")
    logging.getLogger("uvicorn.error").error("broken pipe")
    logging.getLogger("celery.worker").info("ready")
    logging.getLogger("alembic.runtime.migration").info("Context impl")
    assert [(line["logger"], line["message"]) for line in lines(stream)] == [
        ("uvicorn.error", "broken pipe"),
        ("celery.worker", "ready"),
    ]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_secrets_are_taken_out_of_messages_and_of_tracebacks(configured, monkeypatch, log_format):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtnFEMI+K7MDENG")
    stream = configured(
        log_format=log_format,
        database_url="postgresql://pennyweight:hunter%2F2secret@db/pennyweight",
        metrics_token="scrape-me-now",
    )
    log = logging.getLogger("x")
    log.info("key pw_live_AbC-123_xyz and Authorization: Bearer abcdef123456")
    log.info("GET https://s3/b/k?X-Amz-Credential=AKIA1/2026/x&X-Amz-Signature=deadbeef99&partNumber=3")
    log.info("redis://:opensesame1@redis:6379/0 wJalr/XUtnFEMI+K7MDENG scrape-me-now whsec_c2VjcmV0cw==")
    with logs.bound(url="postgresql://u:fromcontext@h/d"):
        try:
            raise OSError("cannot connect to postgresql://pennyweight:hunter/2secret@db with hunter/2secret")
        except OSError:
            log.exception("down")
    text = stream.getvalue()
    secrets = (
        "AbC-123",
        "abcdef123456",
        "AKIA1",
        "deadbeef99",
        "opensesame1",
        "MDENG",
        "scrape-me",
        "c2Vjcm",
        "hunter",
    )
    assert [secret for secret in (*secrets, "fromcontext", "2secret") if secret in text] == []
    assert "pw_live_[redacted]" in text and "partNumber=3" in text and "cannot connect" in text


def test_a_thread_with_the_context_of_its_work_logs_about_the_same_work(configured):
    stream = configured(log_format="json")
    with logs.bound(job_id="job_1"):
        context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(logging.getLogger("lease").warning, "late"))
    thread.start()
    thread.join()
    assert lines(stream)[0]["job_id"] == "job_1"
