"""How much a tenant may have: the installation's limits or its own, and what a request hears that goes over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from pennyweightd.__main__ import app as pennyweightd
from store import work
from store.contract import WorkKind
from store.database import Database
from store.gpu_time import used_s
from store.quotas import change_quotas, stored_bytes
from store.tables import LOCAL_TENANT, Job, Tenant
from tests.api.conftest import ARTIFACT, CATALOGUE, CHECKPOINT, HALF, Service, problem, spec

FILE = {"file": ("net.pt", CHECKPOINT)}
WITH_GPU = CATALOGUE.model_copy(update={"devices": ["cpu", "gpu"]})


def test_stored_bytes_of_a_tenant_are_limited_wherever_they_come_from(serve):
    room = 2 * len(CHECKPOINT) + 50
    with serve(quota_stored_bytes=room) as service:
        model = service.upload()["id"]
        service.client.post("/v1/datasets", files={"file": ("d.npz", b"PK" * 25)})
        service.client.post("/v1/uploads", json={"filename": "a", "size": 40, "purpose": "dataset"})
        files = len(service.stored_files())
        answer = service.client.post("/v1/models", files=FILE)
        refusal = problem(answer, 507, "quota_exceeded")
        assert f"{len(CHECKPOINT) + 90} of {room} bytes" in refusal["detail"]
        assert refusal["quota"] == {
            "name": "stored_bytes",
            "limit": room,
            "used": len(CHECKPOINT) + 90,
            "requested": len(CHECKPOINT),
        }
        big = {"filename": "a", "size": len(CHECKPOINT) + 11, "purpose": "dataset"}
        problem(service.client.post("/v1/uploads", json=big), 507, "quota_exceeded")
        form = service.client.post("/v1/jobs", files={"model": FILE["file"]}, data={"spec": spec()})
        problem(form, 507, "quota_exceeded")
        assert len(service.stored_files()) == files
        service.inspect_model()
        service.job(model=model)
        service.finish_job()
        with service.database.read() as session:
            assert stored_bytes(session, LOCAL_TENANT) == len(CHECKPOINT) + 90 + len(ARTIFACT)
        service.client.delete(f"/v1/models/{model}")
        assert service.client.post("/v1/models", files=FILE).status_code == 201


def test_jobs_at_a_time_are_limited_even_when_they_come_together(serve):
    with serve(quota_active_jobs=3) as service:
        body = {"model": service.upload()["id"], "budget": HALF}
        start = threading.Barrier(8)

        def send(_: int) -> int:
            start.wait()
            return service.client.post("/v1/jobs", json=body).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(send, range(8)))
        assert sorted(statuses) == [201] * 3 + [429] * 5
        refused = service.client.post("/v1/jobs", json=body)
        use = problem(refused, 429, "too_many_jobs")["quota"]
        assert use == {"name": "active_jobs", "limit": 3, "used": 3, "requested": 1}
        assert refused.headers["retry-after"] == "30"
        job = service.client.get("/v1/jobs").json()["data"][0]["id"]
        service.client.post(f"/v1/jobs/{job}/cancel")
        assert service.client.post(f"/v1/jobs/{job}/retry").status_code == 201
        problem(service.client.post(f"/v1/jobs/{job}/retry"), 429, "too_many_jobs")


def run_on_gpu(service: Service, seconds: float, gpus: int = 1) -> None:
    """The oldest job runs on a worker with GPUs for so long, and that worker is stopped."""
    claim = work.claim(
        service.database, worker_id="w", kinds={WorkKind.job}, queues={"gpu", "cpu"}, lease_s=60, gpus=gpus
    )
    with service.database.transaction() as session:
        started_at = service.database.now(session) - timedelta(seconds=seconds)
        session.execute(update(Job).where(Job.id == claim.id).values(started_at=started_at))
    work.release(service.database, claim)


@pytest.mark.parametrize("asked", ["gpu", "auto"])
def test_gpu_time_counts_whatever_the_job_asked_for_and_is_not_given_back(serve, asked):
    with serve(quota_gpu_seconds=100) as service:
        service.publish(WITH_GPU)
        job = service.job(device=asked)
        service.inspect_model()
        run_on_gpu(service, 90)
        body = {"model": job["model"], "budget": HALF}
        assert service.client.post("/v1/jobs", json=body).status_code == 201
        run_on_gpu(service, 15, gpus=2)
        for device in ("gpu", "auto"):
            refusal = problem(service.client.post("/v1/jobs", json={**body, "device": device}), 507, "quota_exceeded")
            assert "Ask for the device 'cpu'" in refusal["detail"]
            assert refusal["quota"]["name"] == "gpu_seconds"
            assert refusal["quota"]["limit"] == 100
            assert 120 <= refusal["quota"]["used"] < 130
        service.client.post(f"/v1/jobs/{job['id']}/cancel")
        problem(service.client.post(f"/v1/jobs/{job['id']}/retry"), 507, "quota_exceeded")
        assert service.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        problem(service.client.post("/v1/jobs", json=body), 507, "quota_exceeded")
        assert service.client.post("/v1/jobs", json={**body, "device": "cpu"}).status_code == 201


def test_without_any_gpu_a_limit_on_gpu_time_keeps_nobody_from_working(serve):
    with serve(quota_gpu_seconds=0) as service:
        body = {"model": service.job()["model"], "budget": HALF}
        service.publish(WITH_GPU)
        problem(service.client.post("/v1/jobs", json=body), 507, "quota_exceeded")


def test_job_tells_the_device_that_it_runs_on(service):
    job = service.job()
    assert job["device"] is None
    service.inspect_model()
    run_on_gpu(service, 1)
    assert service.client.get(f"/v1/jobs/{job['id']}").json()["device"] == "gpu"
    service.claim(WorkKind.job)
    assert service.client.get(f"/v1/jobs/{job['id']}").json()["device"] == "cpu"
    with service.database.read() as session:
        assert 1 <= used_s(session, LOCAL_TENANT) < 5


def test_limits_of_a_tenants_own_go_before_those_of_the_installation(serve):
    with serve(require_keys=True, quota_active_jobs=1, quota_stored_bytes=0) as service:
        keys = {tenant: {"Authorization": f"Bearer {service.key(tenant)}"} for tenant in ("free", "tight", "usual")}
        with service.database.transaction() as session:
            change_quotas(session, "free", {"stored_bytes": None, "active_jobs": 2})
            change_quotas(session, "tight", {"stored_bytes": len(CHECKPOINT), "active_jobs": 0})
        problem(service.client.post("/v1/models", files=FILE, headers=keys["usual"]), 507, "quota_exceeded")
        made = {
            tenant: service.client.post("/v1/models", files=FILE, headers=keys[tenant]).json()["id"]
            for tenant in ("free", "tight")
        }
        problem(service.client.post("/v1/models", files=FILE, headers=keys["tight"]), 507, "quota_exceeded")

        def post(tenant: str) -> int:
            body = {"model": made[tenant], "budget": HALF}
            return service.client.post("/v1/jobs", json=body, headers=keys[tenant]).status_code

        assert [post("free"), post("free"), post("free"), post("tight")] == [201, 201, 429, 507]


def test_tenant_that_may_run_no_jobs_is_not_told_to_wait(serve):
    with serve(quota_active_jobs=0) as service:
        refused = service.client.post("/v1/jobs", json={"model": service.upload()["id"], "budget": HALF})
        refusal = problem(refused, 507, "quota_exceeded")
        assert "may run no jobs" in refusal["detail"]
        assert "Whoever runs this service sets the limit" in refusal["detail"]
        assert refusal["quota"] == {"name": "active_jobs", "limit": 0, "used": 0, "requested": 1}
        assert "retry-after" not in refused.headers


def test_quotas_are_set_and_shown_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNYWEIGHT_QUOTA_ACTIVE_JOBS", "8")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(pennyweightd, ["quotas", *arguments, "--data-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert run("set", "acme", "--bytes", "50GB", "--gpu-seconds", "36000") == (
        "acme: --bytes 50000000000, --jobs 8, --gpu-seconds 36000\n"
    )
    assert "--bytes 50000000000, --jobs unlimited" in run("set", "acme", "--jobs", "unlimited")
    rows = {line.split()[0]: line.split()[1:] for line in run("show").splitlines()[1:]}
    assert rows == {
        "acme": ["0", "50000000000*", "0", "unlimited*", "0", "36000*"],
        LOCAL_TENANT: ["0", "unlimited", "0", "8", "0", "unlimited"],
    }
    run("set", "acme", "--bytes", "default", "--jobs", "default", "--gpu-seconds", "0")
    assert run("show", "acme").splitlines()[1].split() == ["acme", "0", "unlimited", "0", "8", "0", "0*"]
    database = Database(f"sqlite:///{tmp_path}/pennyweight.db")
    with database.read() as session:
        assert session.scalars(select(Tenant.quotas).where(Tenant.id == "acme")).one() == {"gpu_seconds": 0}
    database.dispose()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["set", "acme"], "--bytes, --jobs, --gpu-seconds"),
        (["set", "acme", "--jobs", "many"], "--jobs many: give a whole number"),
        (["set", "acme", "--jobs", "1.5"], "--jobs 1.5: give a whole number"),
        (["set", "acme", "--bytes", "40%"], "--bytes 40%: give a whole number, for example 50GB"),
        (["set", "A B", "--jobs", "1"], "lower case letters"),
        (["show", "nobody"], "'nobody'"),
    ],
)
def test_quota_that_makes_no_sense_is_refused_with_what_would(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(pennyweightd, ["quotas", *arguments, "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert said in result.output
