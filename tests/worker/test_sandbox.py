"""What a task that was taken over can reach: proven with the real runner in every confinement that works on this host."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

import core
from worker.probe import Confinement, _candidates, _failure_of, choose_confinement
from worker.process import RunnerProcess, RunnerSpec
from worker.protocol import ModelInput, ResultMessage, Task
from worker.sandbox import FILE_BYTES, Policy

SCRIPTED_COMMANDS = str(Path(__file__).parent / "scripted_commands.py")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder as the server keeps it: passable, with private files in it."""
    folder = tmp_path / "data"
    (folder / "scratch").mkdir(parents=True)
    for passable in (tmp_path.parent.parent, tmp_path.parent, tmp_path, folder, folder / "scratch"):
        passable.chmod(0o711)
    for name in ("pennyweight.db", "other-upload", "secret"):
        (folder / name).write_text("private")
        (folder / name).chmod(0o600)
    return folder


def explore(policy: Policy, data_dir: Path) -> dict:
    """The answers of a runner that tries to get out."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        RunnerProcess(RunnerSpec(policy, data_dir / "scratch", 1, SCRIPTED_COMMANDS)) as runner,
    ):
        script = {
            "do": "explore",
            "secret": str(data_dir / "secret"),
            "database": str(data_dir / "pennyweight.db"),
            "other_upload": str(data_dir / "other-upload"),
            "outside": str(data_dir / "written-by-runner"),
            "code": str(Path(core.__file__).parent),
            "port": listener.getsockname()[1],
            "server_pid": os.getpid(),
        }
        (runner.folder / "input" / "model").write_text(json.dumps(script))
        runner.start(Task(kind="job", threads=1, cpu_seconds=30, model=ModelInput(file="input/model")))
        while runner.talking:
            for message in runner.read(5):
                if isinstance(message, ResultMessage):
                    return message.result["provenance"]
        raise AssertionError(runner.log_tail())


@pytest.fixture
def working_policies(data_dir: Path) -> list[Policy]:
    """Every confinement that does here what it promises, strongest first."""
    hidden = (str(data_dir),)
    found = [policy for policy in _candidates(hidden, FILE_BYTES) if _failure_of(policy, data_dir / "scratch") is None]
    assert found
    return found


def test_no_confinement_leaks_the_environment_or_lets_privileges_grow(data_dir, working_policies, monkeypatch):
    for name in ("PENNYWEIGHT_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "secret")
    for policy in working_policies:
        answers = explore(policy, data_dir)
        kind = Confinement(policy).kind
        assert not {"PENNYWEIGHT_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"} & set(
            answers["environment"]
        ), kind
        assert "NoNewPrivs:\t1" in answers["status"] and "CapEff:\t0000000000000000" in answers["status"], kind
        assert policy.uid is None or answers["uid"] == policy.uid


def test_level_two_has_no_network_no_other_files_and_no_other_processes(data_dir, working_policies):
    for policy in (policy for policy in working_policies if policy.level == 2):
        answers = explore(policy, data_dir)
        reached = [name for name, answer in answers.items() if name.startswith("reads_") and answer]
        assert not reached, policy.kind
        assert not answers["connects"] and not answers["parent_environment"], policy.kind
        assert not answers["could_write_code"] and not (data_dir / "written-by-runner").exists(), policy.kind
        assert len(answers["pids"]) <= 2, policy.kind


def test_another_user_is_kept_from_private_files_by_level_one_alone(data_dir, working_policies):
    for policy in (policy for policy in working_policies if policy.uid is not None):
        answers = explore(policy, data_dir)
        assert not any(answers[f"reads_{name}"] for name in ("secret", "database", "other_upload"))
        assert not answers["parent_environment"]


def test_the_strongest_working_confinement_is_chosen(data_dir, working_policies):
    chosen = choose_confinement(data_dir / "scratch", (str(data_dir),), FILE_BYTES)
    assert chosen.policy == working_policies[0]
    assert chosen.level == max(policy.level for policy in working_policies)


def test_a_confinement_that_leaves_a_door_open_is_not_believed(data_dir):
    """`process` claims no more than level 1; were it taken for level 2, the probe would say what is open."""

    class Boastful(Policy):
        level = 2

    policy = next(policy for policy in _candidates((), FILE_BYTES) if policy.kind == "process" and policy.uid is None)
    boastful = Boastful(**vars(policy))
    assert "reaches_network" in _failure_of(boastful, data_dir / "scratch")


def test_slots_have_users_of_their_own(working_policies):
    for policy in working_policies:
        first, second = (Confinement(policy).for_slot(index) for index in (0, 1))
        assert policy.uid is None or first.uid != second.uid


def test_confinements_that_this_environment_promises_do_work(working_policies):
    """PENNYWEIGHT_TEST_SANDBOXES names the kinds that must work here, so that a missing program is an error."""
    promised = set(filter(None, os.environ.get("PENNYWEIGHT_TEST_SANDBOXES", "process").split(",")))
    assert promised <= {policy.kind for policy in working_policies}
