"""The OpenAPI document against the running service, with API keys: schemathesis sends what it allows and what it forbids.

No answer may be a 5xx, and every answer must have a status, a content type and a body that the document promises; without the
key there is none. PENNYWEIGHT_TEST_FUZZ_EXAMPLES says how hard it tries at each operation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig

from api.app import create_app
from store.settings import Settings
from tests.api.conftest import CATALOGUE, Service, run_service

EXAMPLES = int(os.environ.get("PENNYWEIGHT_TEST_FUZZ_EXAMPLES", "10"))


def document() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return create_app(Settings(data_dir=folder, require_keys=True)).openapi()


SCHEMA = schemathesis.openapi.from_dict(
    document(),
    config=SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "generation": {"mode": "all", "max-examples": EXAMPLES, "deterministic": True, "database": "none"},
            # Some rules relate fields (mean and std have one length), and no JSON schema says those.
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, migrated) -> Iterator[tuple[Service, dict[str, str]]]:
    """A service with one of everything, and the path parameters that name it."""
    folder = tmp_path_factory.mktemp("fuzzed") / "data"
    with run_service(folder, migrated, max_upload_bytes=1 << 20, require_keys=True, rate_limit_per_minute=0) as service:
        service.client.headers["Authorization"] = f"Bearer {service.key()}"
        service.publish(CATALOGUE)
        dataset = service.client.post("/v1/datasets", files={"file": ("d.npz", b"PK")}).json()["id"]
        job = service.job()
        service.inspect_model()
        service.finish_job()
        upload = service.client.post("/v1/uploads", json={"filename": "a", "size": 9, "purpose": "dataset"}).json()
        plan = service.plan(job["model"])
        service.finish_plan()
        ids = {"model_id": job["model"], "dataset_id": dataset, "job_id": job["id"], "plan_id": plan}
        ids |= {"upload_id": upload["id"], "name": "model.onnx"}
        hook = {"url": "https://hooks.example.org/x", "events": ["job.queued"]}
        ids["endpoint_id"] = service.client.post("/v1/webhook_endpoints", json=hook).json()["id"]
        service.job(model=job["model"])
        sent = service.client.get(f"/v1/webhook_endpoints/{ids['endpoint_id']}/deliveries").json()["data"]
        ids["delivery_id"] = sent[0]["id"]
        with pytest.MonkeyPatch.context() as patch:
            # Nobody makes the plans that are asked for, and 30 s each would be long.
            patch.setattr("api.plans.WAIT_S", 0.01)
            yield service, ids


def key_of(service: Service) -> dict[str, str]:
    return {"Authorization": service.client.headers["Authorization"]}


@SCHEMA.parametrize()
def test_service_keeps_what_its_document_promises(finished, case):
    service, _ = finished
    case.call_and_validate(base_url=service.url, headers=key_of(service), timeout=20)


@SCHEMA.include(method="GET").parametrize()
def test_service_keeps_its_promises_about_things_that_exist(finished, case):
    service, ids = finished
    case.path_parameters = {name: ids.get(name, value) for name, value in (case.path_parameters or {}).items()}
    case.call_and_validate(base_url=service.url, headers=key_of(service), timeout=20)


def test_service_keeps_its_promises_along_chains_of_calls(finished):
    """What one call answers is what the next one asks about: made, looked at, changed, deleted, looked at again."""
    service, _ = finished
    calls: list[tuple[str, int]] = []

    class Chains(SCHEMA.as_state_machine()):
        def get_call_kwargs(self, case) -> dict[str, Any]:
            return {"base_url": service.url, "headers": key_of(service), "timeout": 20}

        def after_call(self, response, case) -> None:
            calls.append((f"{case.method} {case.path}", response.status_code))

    Chains.run(
        settings=hypothesis.settings(
            max_examples=max(15, EXAMPLES),
            stateful_step_count=8,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
    )
    assert {status for _, status in calls} >= {200, 404}
    assert len({operation for operation, _ in calls}) >= 15
