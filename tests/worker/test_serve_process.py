"""`pennyweightd` as a process: it starts, refuses, stops, is killed, and starts again, and nothing is lost."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save

from core.architectures import build
from store.contract import JobStatus
from store.database import Database
from store.tables import Job, Work
from tests.worker.conftest import alive, processes_naming

ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}
READY = re.compile(r"Pennyweight is ready: (http://\S+)")


class Server:
    """One `pennyweightd serve` on a free port."""

    def __init__(self, data_dir: Path, *options: str, **settings: str) -> None:
        self.data_dir = data_dir
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PENNYWEIGHT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pennyweightd", "serve", "--port", "0", "--data-dir", str(data_dir), *options],
            stdout=subprocess.PIPE,
            stderr=(data_dir.parent / f"{data_dir.name}.log").open("ab"),
            env=environment | {"OMP_NUM_THREADS": "1"} | settings,
            text=True,
        )
        match = READY.match(line := self.process.stdout.readline())
        assert match, line
        self.client = httpx.Client(base_url=match[1], timeout=30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def job(self, id: str) -> dict:
        return self.client.get(f"/v1/jobs/{id}").raise_for_status().json()

    def events(self, id: str) -> list[str]:
        data = (
            self.client.get(f"/v1/jobs/{id}/events", params={"limit": 100, "order": "asc"})
            .raise_for_status()
            .json()["data"]
        )
        return [event["type"] for event in data]

    def when(self, id: str, condition: Callable[[dict], bool], timeout_s: float = 180) -> dict:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition(job := self.job(id)):
                return job
            time.sleep(0.05)
        raise AssertionError(f"{id} after {timeout_s:g} s: {self.job(id)}")

    def submit(self, *, epochs: int) -> str:
        """A real job on a small residual network with random weights and a dataset of noise it has learnt."""
        checkpoint, dataset = checkpoint_and_dataset()
        spec = {"budget": {"flops": {"max_ratio": 0.6}}, "recovery": {"epochs": epochs}, "outputs": ["safetensors"]}
        answer = self.client.post(
            "/v1/jobs",
            files={"model": ("net.safetensors", checkpoint), "dataset": ("images.npz", dataset)},
            data={
                "spec": json.dumps(spec),
                "architecture": "cifar_resnet",
                "architecture_args": json.dumps(ARGS),
                "input_shape": "[1, 8, 8]",
            },
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]


def checkpoint_and_dataset() -> tuple[bytes, bytes]:
    """A network, and images labelled by that very network, so that its accuracy is beyond doubt."""
    torch.manual_seed(0)
    model = build("cifar_resnet", ARGS).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("linear.weight"):
            tensor.mul_(20)
    images = np.random.default_rng(0).integers(0, 256, (600, 1, 8, 8), dtype=np.uint8)
    with torch.no_grad():
        logits = model(torch.from_numpy(images).float() / 255)
    labels = (logits - logits.mean(0)).argmax(1).numpy()
    model.linear.bias.data -= logits.mean(0)
    file = io.BytesIO()
    np.savez(file, x=images, y=labels)
    return save(model.state_dict()), file.getvalue()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str, **settings: str) -> Server:
        servers.append(Server(tmp_path / "data", *options, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pennyweightd", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_killed_in_the_middle_of_a_job_and_started_again_it_goes_on_and_finishes_the_job_once(serve):
    first = serve(PENNYWEIGHT_CHECKPOINT_INTERVAL_S="0.2")
    id = first.submit(epochs=15)
    first.when(id, lambda job: job["stage"] == "recover")
    database = Database(f"sqlite:///{first.data_dir}/pennyweight.db")

    def kept() -> str | None:
        with database.read() as session:
            return session.get_one(Job, id).checkpoint_key

    first.when(id, lambda job: kept() is not None)
    runners = processes_naming(str(first.data_dir / "scratch"))
    assert runners
    first.kill()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in runners):
        assert time.monotonic() < deadline, "runners outlive their server"
        time.sleep(0.05)

    second = serve()
    job = second.when(id, lambda job: job["finished_at"] is not None)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    assert job["resumed_from"]["attempt"] == 1 and "job.resumed" in second.events(id)
    events = second.events(id)
    assert events.count("job.running") == 2 and events.count("job.succeeded") == 1
    assert [e for e in events if e in ("job.succeeded", "job.failed", "job.cancelled")] == ["job.succeeded"]
    for artifact in job["result"]["artifacts"]:
        content = second.client.get(f"/v1/jobs/{id}/artifacts/{artifact['name']}").raise_for_status().content
        assert len(content) == artifact["size"]
    attempts = (second.data_dir / "objects").glob
    # After the job's last write.
    second.when(id, lambda job: kept() is None and [a.name for a in attempts(f"tenants/*/jobs/{id}/*")] == ["2"])
    assert not list(attempts(f"tenants/*/jobs/{id}/2/_checkpoint*"))
    database.dispose()


def test_a_planned_stop_in_the_middle_of_a_job_is_quick_and_gives_the_job_back_without_a_loss(serve):
    server = serve()
    id = server.submit(epochs=300)
    server.when(id, lambda job: job["stage"] == "recover")
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 10
    assert not processes_naming(str(server.data_dir / "scratch"))
    database = Database(f"sqlite:///{server.data_dir}/pennyweight.db")
    with database.read() as session:
        job, work = session.get_one(Job, id), session.get_one(Work, id)
        assert (job.status, work.losses, work.lease_owner) == (JobStatus.queued, 0, None)
    database.dispose()


def test_a_running_server_has_a_catalogue_no_torch_and_its_folder_to_itself(serve):
    server = serve()
    deadline = time.monotonic() + 60
    while not (methods := server.client.get("/v1/methods").json()["data"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {"auto", "magnitude"} <= {method["type"] for method in methods}
    worker = server.client.get("/readyz").json()["worker"]
    assert worker["sandbox_level"] in (1, 2) and worker["devices"][0] == "cpu"

    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps and "sqlite" in maps

    second = run("serve", "--port", "0", "--data-dir", str(server.data_dir))
    assert second.returncode == 2
    assert "Another pennyweightd" in second.stderr and "Traceback" not in second.stderr
    assert server.client.get("/healthz").status_code == 200


def test_strangers_are_served_only_with_keys(tmp_path):
    data_dir = str(tmp_path / "data")
    refused = run("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", data_dir)
    assert refused.returncode == 2 and "pennyweightd keys create" in refused.stderr
    made = run("keys", "create", "ci", "--data-dir", data_dir)
    secret = made.stdout.strip()
    assert made.returncode == 0 and secret.startswith("pw_live_")
    listed = run("keys", "list", "--data-dir", data_dir)
    assert "ci" in listed.stdout and secret not in listed.stdout
    server = Server(tmp_path / "data", "--host", "0.0.0.0")
    try:
        url = f"http://127.0.0.1:{server.client.base_url.port}/v1/jobs"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        key_id = re.search(r"key_\w+", listed.stdout)[0]
        assert run("keys", "revoke", key_id, "--data-dir", data_dir).returncode == 0
        assert httpx.get(url, headers={"Authorization": f"Bearer {secret}"}).status_code == 401
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("serve", "--port", "70000"), "--port"),
        (("serve", "--no-such-option"), "no-such-option"),
        (("sevre",), "sevre"),
        (("keys", "revoke", "key_unknown", "--data-dir", "{data}"), "key_unknown"),
        (("keys", "create", "  ", "--data-dir", "{data}"), "name"),
        (("api", "--port", "0", "--data-dir", "{data}"), "pennyweightd migrate"),
        (("serve", "--port", "0", "--data-dir", "/proc/data"), "/proc"),
    ],
)
def test_a_usage_mistake_gets_a_sentence_and_exit_status_2(tmp_path, arguments, says):
    done = run(*(argument.replace("{data}", str(tmp_path / "data")) for argument in arguments))
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENNYWEIGHT_PORT", "many"),
        ("PENNYWEIGHT_DATABASE_URL", "oracle://x"),
        ("PENNYWEIGHT_STORAGE_URL", "ftp://x/y"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, name, value):
    done = run("serve", "--data-dir", str(tmp_path / "data"), **{name: value})
    assert done.returncode == 2
    assert name in done.stderr and "Traceback" not in done.stderr


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--port", port, "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2 and port in done.stderr and "Traceback" not in done.stderr


def test_migrate_and_version_say_what_they_did(tmp_path):
    migrated = run("migrate", "--data-dir", str(tmp_path / "data"))
    assert migrated.returncode == 0 and "up to date" in migrated.stdout
    assert (tmp_path / "data" / "pennyweight.db").stat().st_mode & 0o077 == 0
    assert re.match(r"pennyweightd \d+\.\d+\.\d+", run("version").stdout)


def test_a_postgresql_url_without_its_driver_is_one_line_with_the_command(tmp_path):
    # The driver's name is taken for the interpreter that starts here, whether it is installed or not.
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(\"No module named 'psycopg'\")\n")
    done = run(
        "migrate",
        "--data-dir",
        str(tmp_path / "data"),
        PENNYWEIGHT_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none",
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pip install 'pennyweight-server[postgres]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_database_url_that_is_none_is_one_line(tmp_path):
    done = run("migrate", "--data-dir", str(tmp_path / "data"), PENNYWEIGHT_DATABASE_URL="garbage")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "PENNYWEIGHT_DATABASE_URL" in done.stderr and "garbage" not in done.stderr
