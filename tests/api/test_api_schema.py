"""The OpenAPI document against the running service: schemathesis sends what it allows and what it forbids.

No answer may be a 5xx, and every answer must have a status, a content type and a body that the document promises.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig

from api.app import create_app
from store.settings import Settings
from tests.api.conftest import CATALOGUE, Service, run_service


def document() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return create_app(Settings(data_dir=folder)).openapi()


SCHEMA = schemathesis.openapi.from_dict(
    document(),
    config=SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "generation": {"mode": "all", "max-examples": 20, "deterministic": True, "database": "none"},
            # Some rules relate fields (mean and std have one length), and no JSON schema says those.
            "checks": {"positive_data_acceptance": {"enabled": False}},
            "phases": {"stateful": {"enabled": False}},
        }
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, migrated) -> Iterator[tuple[Service, dict[str, str]]]:
    """A service with one of everything, and the path parameters that name it."""
    folder = tmp_path_factory.mktemp("fuzzed") / "data"
    with run_service(folder, migrated, max_upload_bytes=1 << 20) as service:
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


@SCHEMA.parametrize()
def test_service_keeps_what_its_document_promises(finished, case):
    case.call_and_validate(base_url=finished[0].url, timeout=20)


@SCHEMA.include(method="GET").parametrize()
def test_service_keeps_its_promises_about_things_that_exist(finished, case):
    service, ids = finished
    case.path_parameters = {name: ids.get(name, value) for name, value in (case.path_parameters or {}).items()}
    case.call_and_validate(base_url=service.url, timeout=20)
