"""Both command lines as a person or a pipeline uses them: exit codes, messages, files, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service.conftest import ARGS, Digits

BIN = Path(sys.executable).parent
SHAPE = ["--architecture", "cifar_resnet", "--architecture-args", json.dumps(ARGS), "--input-shape", "1x8x8"]
QUICK = ["--outputs", "safetensors,report"]


def run(program: str, *arguments: str, url: str | None = None, timeout_s: float = 180) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "200"}
    if url:
        environment["PENNYWEIGHT_URL"] = url
    return subprocess.run(
        [str(BIN / program), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=timeout_s
    )


def assert_mistake(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in done.stderr


def test_compress_through_the_service_leaves_the_artifacts_and_a_table(service_url, digits_files: Digits, tmp_path):
    done = run(
        "pennyweight",
        "compress",
        digits_files.checkpoint,
        *SHAPE,
        *QUICK,
        "--flops",
        "50%",
        "-o",
        tmp_path / "out",
        url=service_url,
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "model.py",
        "report.html",
        "report.json",
        "manifest.json",
    }
    assert "FLOPs" in done.stdout and "✓ met" in done.stdout


def test_clone_runs_a_job_again_with_another_budget(service_url, digits_files: Digits):
    first = run(
        "pennyweight",
        "compress",
        digits_files.checkpoint,
        *SHAPE,
        *QUICK,
        "--flops",
        "50%",
        "--wait",
        "--json",
        url=service_url,
    )
    job = json.loads(first.stdout)
    again = run("pennyweight", "compress", "--clone", job["id"], "--params", "60%", "--wait", "--json", url=service_url)
    clone = json.loads(again.stdout)
    assert clone["id"] != job["id"] and clone["model"] == job["model"]
    assert [c["metric"] for c in clone["result"]["constraints"]] == ["params", "flops"]


def test_plan_is_shown_edited_and_run(service_url, digits_files: Digits, tmp_path):
    saved = tmp_path / "plan.json"
    budget = ["--flops", "50%"]
    done = run("pennyweight", "plan", digits_files.checkpoint, *SHAPE, *budget, "-o", saved, url=service_url)
    assert done.returncode == 0, done.stderr
    assert "layer1.0.conv1" in done.stdout and "✓ met" in done.stdout and "linear" in done.stdout
    plan = json.loads(saved.read_text())
    next(layer for layer in plan["layers"] if layer["name"] == "layer1.0.conv1")["after"]["out"] = 4
    saved.write_text(json.dumps(plan))
    arguments = ["compress", plan["model"], *budget, *QUICK, "--plan", saved, "--wait", "--json"]
    ran = run("pennyweight", *arguments, url=service_url)
    assert ran.returncode == 0, ran.stderr
    after = {layer["name"]: layer["after"]["out"] for layer in json.loads(ran.stdout)["result"]["layers"]}
    assert after["layer1.0.conv1"] == 4
    alone = ["compress", digits_files.checkpoint, *SHAPE, *budget, *QUICK, "--plan", saved, "-o", tmp_path / "out"]
    same = run("pennyweightd", *alone, "--json")
    assert same.returncode == 0, same.stderr
    assert {layer["name"]: layer["after"]["out"] for layer in json.loads(same.stdout)["layers"]} == after
    plan["layers"][0]["name"] = "conv9"
    saved.write_text(json.dumps(plan))
    refused = run("pennyweightd", *alone[:-1], tmp_path / "out2", "--json")
    assert_mistake(refused, 2, "conv9")
    assert json.loads(refused.stdout)["code"] == "invalid_request"


def test_jobs_are_listed_shown_and_told(service_url, digits_files: Digits):
    created = run(
        "pennyweight",
        "compress",
        digits_files.checkpoint,
        *SHAPE,
        *QUICK,
        "--macs",
        "70%",
        "--name",
        "listed",
        "--wait",
        "--json",
        url=service_url,
    )
    job_id = json.loads(created.stdout)["id"]
    listed = run("pennyweight", "jobs", "ls", url=service_url)
    assert job_id in listed.stdout and "listed" in listed.stdout and "macs ≤ 0.7×" in listed.stdout
    assert "✓ met" in run("pennyweight", "jobs", "show", job_id, url=service_url).stdout
    assert "job.succeeded" in run("pennyweight", "jobs", "logs", job_id, url=service_url).stdout
    assert_mistake(run("pennyweight", "jobs", "cancel", job_id, url=service_url), 4, "succeeded")


def test_catalogue_is_printed(service_url):
    assert "magnitude" in run("pennyweight", "methods", url=service_url).stdout
    assert "cifar_resnet110" in run("pennyweight", "architectures", url=service_url).stdout
    found = run("pennyweight", "architectures", "torchvision", "resnet1", url=service_url).stdout
    assert "torchvision:resnet152" in found and "cifar_resnet110" not in found


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["compress"], 2, ["give a checkpoint"]),
        (["compress", "nowhere.pt", "--flops", "40%"], 2, ["nowhere.pt", "no such file"]),
        (["compress", "CHECKPOINT"], 2, ["at least one cap"]),
        (["compress", "CHECKPOINT", "--flops", "0%"], 2, ["between 0% and 100%"]),
        (["jobs", "show", "job_00000000000000000000000000"], 4, ["job_00000000000000000000000000"]),
    ],
)
def test_a_users_mistake_is_one_clear_line(service_url, digits_files: Digits, arguments, code, words):
    arguments = [str(digits_files.checkpoint) if a == "CHECKPOINT" else a for a in arguments]
    assert_mistake(run("pennyweight", *arguments, url=service_url), code, *words)


def test_no_service_is_said_with_what_to_do():
    assert_mistake(run("pennyweight", "jobs", "ls", url="http://127.0.0.1:9"), 4, "pennyweightd serve")


def test_infeasible_budget_exits_3_with_the_smallest(service_url, digits_files: Digits):
    done = run("pennyweight", "compress", digits_files.checkpoint, *SHAPE, "--flops", "0.1%", "--wait", url=service_url)
    assert_mistake(done, 3, "smallest")


def test_interrupt_stops_the_waiting_and_not_the_job(service_url, digits_files: Digits):
    command = [
        BIN / "pennyweight",
        "compress",
        digits_files.checkpoint,
        *SHAPE,
        "--flops",
        "50%",
        "--dataset",
        digits_files.dataset,
    ]
    command += ["--epochs", "1000", "--wait"]
    waiting = subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "PENNYWEIGHT_URL": service_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background commands ignore interrupts, and so would this one if the tests were one of them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = waiting.stderr.readline()
    job_id = first.split()[0]
    time.sleep(1.5)
    waiting.send_signal(signal.SIGINT)
    _, told = waiting.communicate(timeout=30)
    assert waiting.returncode == 130 and "goes on" in told and "Traceback" not in told
    state = json.loads(run("pennyweight", "jobs", "show", job_id, "--json", url=service_url).stdout)
    assert state["status"] in ("queued", "running")
    assert run("pennyweight", "jobs", "cancel", job_id, url=service_url).returncode == 0


def test_engine_alone_writes_the_same_artifacts(digits_files: Digits, tmp_path):
    done = run(
        "pennyweightd", "compress", digits_files.checkpoint, *SHAPE, *QUICK, "--flops", "50%", "-o", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["met"] and report["equivalence"]["passed"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "model.py",
        "report.html",
        "report.json",
        "manifest.json",
    }


def test_engine_alone_reports_mistakes_with_the_same_codes(digits_files: Digits, tmp_path):
    out = ["-o", tmp_path / "out"]
    checkpoint = digits_files.checkpoint
    assert_mistake(run("pennyweightd", "compress", checkpoint, *SHAPE, *out), 2, "at least one cap")
    assert_mistake(
        run("pennyweightd", "compress", tmp_path / "no.pt", *SHAPE, "--flops", "40%", *out), 2, "no such file"
    )
    assert_mistake(run("pennyweightd", "compress", checkpoint, *SHAPE, "--flops", "0.1%", *out), 3, "smallest")
    other = ["--architecture", "cifar_resnet56"]
    assert_mistake(
        run("pennyweightd", "compress", checkpoint, *other, "--flops", "40%", *out), 4, "architecture_mismatch"
    )
    wrong_method = ["--flops", "40%", "--method", "nope"]
    assert_mistake(run("pennyweightd", "compress", checkpoint, *SHAPE, *wrong_method, *out), 2, "nope")
    assert not (tmp_path / "out").exists()
