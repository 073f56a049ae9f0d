"""The client's commands against a service that is played: what they send, and how they end."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from pennyweight import ApiError, Client, InvalidAddress, JobFailed, Plan, cli, session
from typer.testing import CliRunner

MODEL = "mdl_" + "0" * 26
COSTS = {"params": 1000, "macs": 20_000, "flops": 40_000, "weight_bytes": 4000, "memory_bytes": 9000}


def layer(name: str, before: int, after: int, group: str | None = None, least: int = 4) -> dict[str, Any]:
    counts = {"params": 9 * before, "macs": 99 * before}
    return {
        "name": name,
        "before": {"out": before, **counts},
        "after": {"out": after, **counts},
        "min": least,
        "max": before,
        "group": name if group is None else group,
    }


PLAN = {
    "id": "pln_1",
    "object": "plan",
    "status": "ready",
    "model": MODEL,
    "feasible": True,
    "predicted": {**COSTS, "flops": 16_000},
    "baseline": COSTS,
    "constraints": [{"metric": "flops", "kind": None, "limit": 16_000, "value": 16_000, "met": True}],
    "layers": [
        layer("conv1", 16, 12),
        layer("layer1.conv1", 16, 9),
        layer("layer1.conv2", 16, 12, group="conv1"),
        layer("layer2.conv2", 32, 20, group="conv1 + layer2.conv2"),
        layer("linear", 10, 10, group="", least=10),
    ],
    "frozen": [{"layer": "linear", "operator": "output", "reason": "it is [the] answer"}],
    "smallest": None,
    "note": "The cap on flops binds.",
    "error": None,
}


class Played:
    """A service that answers what it was told to, in order, and remembers what it was sent."""

    def __init__(self) -> None:
        self.answers: list[httpx.Response] = []
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        return self.answers.pop(0)

    def sent(self) -> list[Any]:
        return [json.loads(request.content) if request.content else None for request in self.requests]


@pytest.fixture
def played(monkeypatch) -> Played:
    played = Played()
    monkeypatch.setattr(session, "Client", partial(Client, transport=httpx.MockTransport(played)))
    return played


@pytest.fixture
def run(played) -> Callable[..., Result]:
    def run(*arguments: str, answers: list[tuple[int, Any]] = ()) -> Result:
        played.answers = [httpx.Response(status, json=answer) for status, answer in answers]
        done = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


REFUSED = {
    "title": "The request is not valid",
    "detail": "/budget/flops: give either max or max_ratio, not both",
    "code": "validation_failed",
    "errors": [{"pointer": "/budget/flops", "code": "invalid", "detail": "give either max or max_ratio, not both"}],
}


def test_one_field_that_is_wrong_is_told_once_and_several_each_once(run):
    told = run("jobs", "show", "job_1", answers=[(422, REFUSED)])
    assert told.stderr.count("not both") == 1 and told.exit_code == 2
    second = {"pointer": "/seed", "code": "greater", "detail": "must be positive"}
    both = {
        **REFUSED,
        "detail": f"{REFUSED['detail']} (and 1 more, see errors)",
        "errors": [*REFUSED["errors"], second],
    }
    told = run("jobs", "show", "job_1", answers=[(422, both)])
    assert told.stderr.count("not both") == 1 and told.stderr.count("/seed: must be positive") == 1


def test_detail_that_does_not_name_its_field_is_told_with_it(run):
    error = ApiError(404, {"detail": "Nothing here.", "errors": [{"pointer": "/model", "detail": "No such model."}]})
    assert str(error) == "Nothing here.\n  /model: No such model."


@pytest.mark.parametrize(
    ("arguments", "answers", "code", "exit_code"),
    [
        (["jobs", "show", "job_1"], [(422, REFUSED)], "validation_failed", 2),
        (["jobs", "show", "job_1"], [(404, {"code": "not_found", "detail": "No job."})], "not_found", 4),
        (["jobs", "show", "job/1"], [], "usage", 2),
        (["compress", "nowhere.pt", "--flops", "40%"], [], "usage", 2),
        (["compress", "--flops", "40%"], [], "usage", 2),
        (["plan", MODEL, "--flops", "0.4"], [], "usage", 2),
    ],
)
def test_failure_is_json_on_standard_output_where_json_was_asked_for(run, arguments, answers, code, exit_code):
    done = run(*arguments, "--json", answers=answers)
    document = json.loads(done.stdout)
    assert (document["code"], done.exit_code) == (code, exit_code)
    assert document["detail"] and done.stderr.startswith("error:")


def test_job_that_fails_is_printed_as_json_with_its_error(run):
    job = {"id": "job_1", "status": "queued", "links": {"self": "…"}}
    error = {"code": "target_infeasible", "message": "The smallest has 7."}
    done = run(
        "compress",
        MODEL,
        *("--flops", "40%", "--wait", "--json"),
        answers=[(201, job), (200, {**job, "status": "failed", "error": error})],
    )
    assert json.loads(done.stdout)["error"] == error
    assert done.exit_code == 3 and "The smallest has 7." in done.stderr


@pytest.mark.parametrize("id", ["../models", "..", ".", "", "a b", "job_1?x=1", "job_1#", "[/x]", "ü", "a" * 200])
def test_odd_id_is_refused_in_words_and_never_sent(played, run, id):
    with Client("http://127.0.0.1:1") as client, pytest.raises(InvalidAddress, match="not an id"):
        client.job(id)
    for command in ("show", "logs", "cancel"):
        done = run("jobs", command, "--", id)
        assert done.exit_code == 2 and "is not an id" in done.stderr
    assert played.requests == []


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://a:b:c", "http://x:99999999"])
def test_address_that_is_none_is_refused_in_words(run, url):
    done = run("jobs", "ls", "--url", url)
    assert done.exit_code == 2 and "address of a service" in done.stderr


def test_clone_takes_the_place_of_what_is_given_and_of_nothing_else(played, run):
    request = {
        "model": MODEL,
        "name": "first",
        "budget": {"flops": {"max": None, "max_ratio": 0.4}, "params": {"max": 5000, "max_ratio": None}, "macs": None},
        "recovery": {"epochs": 3, "learning_rate": 0.1, "distill": None},
        "accuracy": None,
        "seed": 7,
    }
    new = {"id": "job_2", "status": "queued", "links": {"self": "…"}}
    done = run(
        *("compress", "--clone", "job_1", "--params", "60%", "--epochs", "9", "--max-drop", "0.1"),
        answers=[(200, {"request": request}), (201, new)],
    )
    assert done.exit_code == 0, done.stderr
    body = played.sent()[1]
    assert body["budget"] == {**request["budget"], "params": {"max_ratio": 0.6}}
    assert body["recovery"] == {"epochs": 9, "learning_rate": 0.1, "distill": None}
    assert (body["accuracy"], body["seed"], body["name"], body["model"]) == ({"max_drop": 0.1}, 7, "first", MODEL)


@pytest.mark.parametrize("command", ["compress", "download"])
def test_folder_that_cannot_be_written_is_found_before_anything_is_sent(played, run, tmp_path, command):
    (tmp_path / "file").write_text("not a folder")
    arguments = {"compress": ["compress", MODEL, "--flops", "40%"], "download": ["jobs", "download", "job_1"]}[command]
    for output in (tmp_path / "file", tmp_path / "file" / "deep" / "out", Path("/proc/nothing/here")):
        done = run(*arguments, "-o", output)
        assert done.exit_code == 2 and str(output) in done.stderr
    assert played.requests == []


def test_plan_is_shown_layer_by_layer_with_costs_caps_and_what_cannot_change(played, run, tmp_path):
    saved = tmp_path / "plan.json"
    done = run("plan", MODEL, "--flops", "40%", "--seed", "3", "-o", saved, answers=[(200, PLAN)])
    assert done.exit_code == 0, done.stderr
    assert played.sent() == [{"model": MODEL, "budget": {"flops": {"max_ratio": 0.4}}, "seed": 3}]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["layer1.conv1", "16", "→", "9", "4", "16", "144", "→", "144", "1.584", "k", "→", "1.584", "k"] in rows
    assert any(row[:3] == ["linear", "10", "fixed"] for row in rows)
    assert "✓ met  flops: 16 k of at most 16 k" in done.stdout and "it is [the] answer" in done.stdout
    assert f"pennyweight compress {MODEL} --plan {saved}" in done.stderr
    assert json.loads(saved.read_text()) == PLAN
    shown = run("plan", MODEL, "--flops", "40%", "--json", answers=[(200, PLAN)])
    assert json.loads(shown.stdout) == PLAN


def test_plan_takes_what_a_job_takes_and_asks_for_the_same(played, run):
    of_job, of_plan = (set(inspect.signature(command).parameters) for command in (cli.compress, cli.plan))
    assert of_job - of_plan == {"name", "clone", "wait", "priority"} and of_plan <= of_job
    options = ["--size", "40%", "--encoding", "ecsq:levels=16", "--outputs", "onnx,pwt", "--onnx-opset", "20"]
    options += ["--device", "cpu", "--best-effort", "--recovery", "optimizer=adamw", "--epochs", "3"]
    options += ["--max-drop", "0.01"]
    run("compress", MODEL, *options, answers=[(201, {"id": "job_1", "status": "queued", "links": {"self": "x"}})])
    run("plan", MODEL, *options, answers=[(200, PLAN)])
    job, plan = played.sent()
    assert job == plan
    assert plan["encoding"] == {"quantizer": "ecsq", "levels": 16} and plan["outputs"] == ["onnx", "pwt"]


@pytest.mark.parametrize("command", ["compress", "plan"])
def test_option_of_a_dataset_that_makes_no_sense_is_refused_before_the_model_is_sent(played, run, tmp_path, command):
    (tmp_path / "net.pt").write_bytes(b"weights")
    told = run(command, tmp_path / "net.pt", "--flops", "40%", "--dataset", tmp_path / "net.pt", "--normalization", "?")
    assert told.exit_code == 2 and "--normalization" in told.stderr
    assert played.requests == []


@pytest.mark.parametrize(
    "arguments, methods",
    [
        (["--method", "magnitude:p=1"], [{"type": "magnitude", "p": 1}]),
        (["--method", "magnitude:p=1", "--method", "penni"], [{"type": "magnitude", "p": 1}, {"type": "penni"}]),
        (["--method", '{"type": "penni"}', "--method", "magnitude"], [{"type": "penni"}, {"type": "magnitude"}]),
    ],
)
def test_methods_make_a_chain_in_the_order_in_which_they_are_given(played, run, arguments, methods):
    job = {"id": "job_1", "status": "queued", "links": {"self": "x"}}
    run("plan", MODEL, "--flops", "40%", *arguments, "--json", answers=[(200, PLAN)])
    run("compress", MODEL, "--flops", "40%", *arguments, "--json", answers=[(201, job)])
    run("compress", MODEL, "--flops", "40%", "--json", answers=[(201, job)])
    bodies = [body for body in played.sent() if body is not None]
    assert [body.get("methods") for body in bodies] == [methods, methods, None]


def test_plan_that_cannot_be_kept_ends_like_a_job_that_cannot(run):
    error = {"code": "target_infeasible", "message": "The smallest has 7 FLOPs."}
    done = run("plan", MODEL, "--flops", "1%", answers=[(200, {**PLAN, "feasible": False, "error": error})])
    assert done.exit_code == 3 and "The smallest has 7 FLOPs." in done.stdout


def test_plan_that_fails_says_why(run):
    error = {"code": "invalid_request", "message": "The network has no layer 'conv9'."}
    done = run("plan", MODEL, "--flops", "40%", answers=[(200, {**PLAN, "status": "failed", "error": error})])
    assert done.exit_code == 2 and "no layer 'conv9'" in done.stderr


def test_slow_plan_is_asked_for_again(played, run):
    planning = {**PLAN, "status": "planning", "feasible": None}
    done = run("plan", MODEL, "--flops", "40%", "--json", answers=[(202, planning), (202, planning), (200, PLAN)])
    assert done.exit_code == 0, done.stderr
    assert [request.method for request in played.requests] == ["POST", "GET", "GET"]
    assert json.loads(done.stdout)["status"] == "ready"


def test_edited_plan_keeps_the_rest_and_leaves_shared_channels_to_the_service():
    plan = Plan(PLAN)
    everything = {"conv1": 12, "layer1.conv1": 9, "layer1.conv2": 12, "layer2.conv2": 20}

    def widths(edited: dict[str, Any]) -> dict[str, int]:
        return {layer["name"]: layer["out"] for layer in edited["layers"]}

    assert plan.widths == widths(plan.edit()) == everything
    assert widths(plan.edit({"layer1.conv1": 7})) == {**everything, "layer1.conv1": 7}
    assert widths(plan.edit({"conv1": 8})) == {"conv1": 8, "layer1.conv1": 9}
    assert widths(plan.edit({"conv1": 8}, replan=True)) == {"conv1": 8}
    with pytest.raises(ValueError, match=r"no layer 'conv9'.*layer1.conv1"):
        plan.edit({"conv9": 1})


def test_plan_in_a_file_goes_with_the_job_as_it_was_edited(played, run, tmp_path):
    edited = json.loads(json.dumps(PLAN))
    edited["layers"][1]["after"]["out"] = 7
    short = {"layers": [{"name": "layer1.conv1", "out": 7}]}
    job = {"id": "job_1", "status": "queued", "links": {"self": "…"}}
    for plan in (edited, short):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        arguments = ("compress", MODEL, "--flops", "40%", "--plan", tmp_path / "plan.json")
        assert run(*arguments, answers=[(201, job)]).exit_code == 0
    first, second = (body["plan"] for body in played.sent())
    assert {"name": "layer1.conv1", "out": 7} in first["layers"] and len(first["layers"]) == 4
    assert second == short


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"layers": []}',
        '{"layers": [{"name": "a"}]}',
        '{"layers": [{"name": "a", "out": 1, "after": {"out": 2}}]}',
    ],
)
def test_plan_file_that_cannot_be_read_says_what_would_be(played, run, tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    done = run("compress", MODEL, "--flops", "40%", "--plan", tmp_path / "plan.json")
    assert done.exit_code == 2 and "pennyweight plan -o" in done.stderr
    assert played.requests == []


def test_failed_plan_raises_with_the_plan_itself():
    failed = {**PLAN, "status": "failed", "error": {"code": "unsafe_model", "message": "It names os.system."}}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=failed))
    with Client("http://127.0.0.1:1", transport=transport) as client, pytest.raises(JobFailed) as raised:
        client.create_plan(MODEL, {"flops": {"max_ratio": 0.4}})
    assert (raised.value.code, raised.value.resource["id"]) == ("unsafe_model", "pln_1")
