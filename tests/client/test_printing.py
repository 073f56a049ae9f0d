"""Names and messages are printed as they are: what looks like markup or an emoji code is still a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
from pennyweight import Client, cli, session
from typer.testing import CliRunner

NAMES = ("[/x]", "run [v2]", "[red]cat[/red] :cat:")


def job(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": "job_1",
        "name": name,
        "status": "succeeded",
        "error": None,
        "result": None,
        "request": {"budget": {"flops": {"max_ratio": 0.4}}},
        "created_at": "2026-11-21T10:00:00Z",
        **changes,
    }


@pytest.fixture
def run(monkeypatch) -> Callable[..., str]:
    """Run a command against a service that gives one answer; returns everything that was printed."""

    def run(answer: Any, *arguments: str, status: int = 200, columns: int = 200) -> str:
        transport = httpx.MockTransport(lambda request: httpx.Response(status, json=answer))
        monkeypatch.setattr(session, "Client", partial(Client, transport=transport))
        done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": str(columns)})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.output

    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", ["succeeded", "cancelled"])
def test_name_of_a_job_is_listed_and_shown_as_it_is(run, name, status):
    assert name in run({"data": [job(name, status=status)], "has_more": False, "next": None}, "jobs", "ls")
    shown = run(job(name, status=status), "jobs", "show", "job_1")
    assert name in shown and status in shown


def test_ids_of_jobs_are_listed_whole_in_a_narrow_terminal(run):
    id = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    listed = {"data": [job("a name of some length", id=id)], "has_more": False, "next": None}
    assert id in run(listed, "jobs", "ls", columns=60)


@pytest.mark.parametrize("name", NAMES)
def test_message_of_an_error_is_printed_as_it_is(run, name):
    told = run({"detail": f"No job {name}.", "code": "not_found"}, "jobs", "show", "job_1", status=404)
    assert f"No job {name}." in told


@pytest.mark.parametrize("name", NAMES)
def test_title_in_the_catalogue_is_printed_as_it_is(run, name):
    answer = {"data": [{"type": "magnitude", "title": name}], "has_more": False, "next": None}
    assert name in run(answer, "methods")
