"""Plans in a real service: exact predictions, edited widths, and refusals in words."""

from __future__ import annotations

import time

import pytest
from pennyweight import Client, JobFailed, Plan

from tests.service.conftest import ARGS, Digits

HALF = {"flops": {"max_ratio": 0.5}}
QUICK = {"outputs": ["safetensors", "report"]}
COSTS = ("params", "macs", "flops", "weight_bytes", "peak_activation_bytes", "memory_bytes")


@pytest.fixture(scope="module")
def model(service_url: str, digits_files: Digits) -> str:
    with Client(service_url) as client:
        options = {"architecture": "cifar_resnet", "architecture_args": ARGS, "input_shape": [1, 8, 8]}
        return client.upload_model(digits_files.checkpoint, **options)["id"]


@pytest.fixture(scope="module")
def plan(service_url: str, model: str) -> Plan:
    with Client(service_url) as client:
        return client.create_plan(model, HALF)


def widths(result) -> dict[str, int]:
    return {layer["name"]: layer["after"]["out"] for layer in result["layers"]}


def test_plan_predicts_exactly_what_the_job_delivers(client: Client, model: str, plan: Plan):
    assert plan["feasible"] and [c["met"] for c in plan["constraints"]] == [True]
    result = client.wait(client.create_job(model, HALF, **QUICK)["id"], timeout_s=120)["result"]
    assert {name: plan["predicted"][name] for name in COSTS} == {name: result["compressed"][name] for name in COSTS}
    assert {name: plan["baseline"][name] for name in COSTS} == {name: result["baseline"][name] for name in COSTS}
    assert plan.widths.items() <= widths(result).items()
    assert any(entry["layer"] == "linear" for entry in plan["frozen"])
    assert client.plan(plan["id"]) == plan


def test_edited_plan_is_what_the_job_does(client: Client, model: str, plan: Plan):
    edited = plan.edit({"layer1.0.conv1": plan.widths["layer1.0.conv1"] - 1})
    seen = client.create_plan(model, HALF, plan=edited)
    result = client.wait(client.create_job(model, HALF, plan=edited, **QUICK)["id"], timeout_s=120)["result"]
    asked = {layer["name"]: layer["out"] for layer in edited["layers"]}
    assert seen.widths == asked and asked.items() <= widths(result).items()
    assert seen["predicted"]["flops"] == result["compressed"]["flops"] < plan["predicted"]["flops"]


def test_infeasible_budget_is_answered_in_seconds_with_the_smallest(client: Client, model: str):
    started = time.monotonic()
    plan = client.create_plan(model, {"flops": {"max_ratio": 0.001}})
    assert time.monotonic() - started < 30
    assert (plan["feasible"], plan["error"]["code"]) == (False, "target_infeasible")
    assert client.create_plan(model, {"flops": {"max": plan["smallest"]["flops"]}})["feasible"]


@pytest.mark.parametrize(
    ("layer", "words"),
    [({"name": "layer1.0.conv", "out": 5}, "layer1.0.conv1"), ({"name": "layer1.0.conv1", "out": 99}, "4 to 8")],
)
def test_width_that_cannot_be_is_refused_with_what_can(client: Client, model: str, layer, words):
    with pytest.raises(JobFailed, match=words) as refused:
        client.create_plan(model, HALF, plan={"layers": [layer]})
    assert refused.value.code == "invalid_request"
    job = client.create_job(model, HALF, plan={"layers": [layer]})
    with pytest.raises(JobFailed, match=words):
        client.wait(job["id"], timeout_s=120)
