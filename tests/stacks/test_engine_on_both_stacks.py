"""One real compression through each stack: upload, inspect, compress, download, and the budget holds."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from safetensors.torch import load

from tests.databases import create_database
from tests.stacks.conftest import KINDS
from tests.stacks.stack import Fleet, OneMachine, engine_job_form


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_compressed_onto_its_budget(kind, tmp_path, request):
    if kind == "fleet":
        urls = [request.getfixturevalue(name) for name in ("postgres_url", "storage_url", "queue_url")]
        stack = Fleet(tmp_path, create_database(urls[0]), *urls[1:], scripted=False)
    else:
        stack = OneMachine(tmp_path, scripted=False)
    form = engine_job_form()
    with contextlib.closing(stack):
        answer = stack.client.post("/v1/jobs", **form)
        assert answer.status_code == 201, answer.text
        job = stack.ended(answer.json()["id"], timeout_s=120)
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
        found = {artifact["name"]: artifact for artifact in job["result"]["artifacts"]}
        url = f"/v1/jobs/{job['id']}/artifacts/model.safetensors"
        content = stack.client.get(url, follow_redirects=True).raise_for_status().content
    assert hashlib.sha256(content).hexdigest() == found["model.safetensors"]["sha256"]
    assert job["result"]["met"] and job["result"]["compressed"]["params"] <= 0.6 * job["result"]["baseline"]["params"]
    checkpoint = form["files"]["model"][1]
    assert sum(tensor.numel() for tensor in load(content).values()) < sum(t.numel() for t in load(checkpoint).values())
