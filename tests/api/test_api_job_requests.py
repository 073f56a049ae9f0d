"""Requests for a job that make no sense: refused at once, with a pointer at the field, and nothing kept."""

from __future__ import annotations

import json

import pytest

from store.contract import Catalogue
from tests.api.conftest import CATALOGUE, CHECKPOINT, HALF, NO_DATASET, NO_MODEL, pointers, problem, spec

JSON = {"Content-Type": "application/json"}
PENNI, MAGNITUDE = {"type": "penni"}, {"type": "magnitude"}
PAPER = {**PENNI, "recipe": "paper"}
WIDTHS = {"layers": [{"name": "conv1", "out": 8}]}


def with_kinds() -> Catalogue:
    """The catalogue with what each method does, and with one that rewrites layers."""
    catalogue = CATALOGUE.model_dump(by_alias=True)
    for method in catalogue["methods"]:
        method["kind"] = "removes_channels"
    recipe = {"enum": ["closed_form", "paper"], "x-needs-labels": ["paper"]}
    bases = {"anyOf": [{"type": "integer"}, {"const": "auto"}]}
    schema = {"type": "object", "properties": {"type": {"const": "penni"}, "recipe": recipe, "bases": bases}}
    penni = {"type": "penni", "title": "Penni", "description": "A method.", "kind": "rewrites_layers", "schema": schema}
    return Catalogue.model_validate({**catalogue, "methods": [*catalogue["methods"], penni]})


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"budget": {}}, "/budget", "at least one cap"),
        ({"budget": None}, "/budget", "valid dictionary"),
        ({"budget": {"flops": {"max_ratio": 1.0}}}, "/budget/flops/max_ratio", "less than 1"),
        ({"budget": {"flops": {"max_ratio": 0}}}, "/budget/flops/max_ratio", "greater than 0"),
        ({"budget": {"flops": {"max_ratio": "0.5"}}}, "/budget/flops/max_ratio", "number"),
        ({"budget": {"flops": {"max_ratio": 0.5, "max": 10}}}, "/budget/flops", "not both"),
        ({"budget": {"flops": {}}}, "/budget/flops", "max_ratio"),
        ({"budget": {"params": {"max": 10**400}}}, "/budget/params/max", ""),
        ({"budget": {"memory": {"max": 10, "kind": "ram"}}}, "/budget/memory/kind", "weights"),
        ({"bugdet": HALF}, "/bugdet", "Unknown field 'bugdet'"),
        ({"outputs": ["onnx", "coreml"]}, "/outputs/1", "safetensors"),
        ({"labels": {"a b~/": "x"}}, "/labels/a b~0~1", "match"),
        ({"labels": {"git": 7}}, "/labels/git", "string"),
        ({"methods": []}, "/methods", "at least 1"),
        ({"methods": [{"type": "wishful"}]}, "/methods/0/type", "magnitude"),
        ({"methods": [{"type": "magnitud"}]}, "/methods/0/type", "Nearest: magnitude"),
        ({"methods": [{"type": "magnitude", "rond_to": 8}]}, "/methods/0", "rond_to"),
        ({"methods": [{"type": "magnitude", "round_to": 0}]}, "/methods/0/round_to", "minimum"),
        ({"accuracy": {"max_drop": 0.01}}, "/accuracy", "dataset"),
        ({"recovery": {"epochs": 2}}, "/recovery", "dataset"),
        ({"budget": {"flops": {"max": 0.4}}}, "/budget/flops/max", "max_ratio"),
        ({"plan": {"layers": []}}, "/plan/layers", "at least 1"),
        ({"plan": {"layers": [{"name": "conv1"}]}}, "/plan/layers/0/out", "required"),
        ({"plan": {"layers": [{"name": "conv1", "out": 0}]}}, "/plan/layers/0/out", "greater"),
        ({"plan": {"layers": [{"name": "a", "out": 1, "after": {}}]}}, "/plan/layers/0/after", "Unknown field"),
        ({"plan": {"layers": [{"name": "a", "out": n} for n in (3, 4)]}}, "/plan", "two widths, 3 and 4"),
        ({"seed": -1}, "/seed", "greater"),
        ({"seed": True}, "/seed", "integer"),
        ({"seed": 2**63}, "/seed", ""),
        ({"model": "resnet20"}, "/model", "match"),
        ({"limits": {"max_runtime_s": 0}}, "/limits/max_runtime_s", "greater"),
        ({"device": "gpu"}, "/device", "use auto or cpu"),
    ],
)
def test_request_that_makes_no_sense_is_a_422_pointing_at_the_field(service, change, pointer, words):
    service.publish(CATALOGUE)
    body = {"model": service.upload()["id"], "budget": HALF, **change}
    assert words in pointers(service.client.post("/v1/jobs", content=json.dumps(body), headers=JSON))[pointer]
    assert service.client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    "options, pointer, words",
    [
        ({"methods": [PENNI, PENNI]}, "/methods", "penni and penni both rewrite layers"),
        (
            {"methods": [{**PENNI, "bases": "x"}]},
            "/methods/0/bases",
            "none of the forms that are allowed: 'x' is not of",
        ),
        ({"methods": [{"type": "auto"}, MAGNITUDE]}, "/methods", "auto and magnitude both remove channels"),
        ({"methods": [PENNI], "plan": WIDTHS}, "/plan", "takes no widths"),
        ({"methods": [MAGNITUDE, PENNI], "plan": WIDTHS}, "/plan", "takes no widths"),
        ({"methods": [PENNI], "budget": {"latency_ms": {"max": 5}}}, "/budget/latency_ms", "does not time"),
        ({"methods": [MAGNITUDE, PENNI], "budget": {"latency_ms": {"max": 5}}}, "/budget/latency_ms", "does not time"),
        ({"methods": [PAPER]}, "/methods/0/recipe", "trains by labels"),
        ({"methods": [MAGNITUDE, PAPER]}, "/methods/1/recipe", "trains by labels"),
    ],
)
def test_what_methods_cannot_do_is_said_at_once_where_workers_say_what_they_do(service, options, pointer, words):
    service.publish(with_kinds())
    body = {"model": service.upload()["id"], "budget": HALF, **options}
    for path in ("/v1/jobs", "/v1/plans"):
        (found,) = pointers(service.client.post(path, json=body)).items()
        assert found[0] == pointer and words in found[1]


def test_methods_that_go_together_are_taken_and_an_older_catalogue_leaves_it_to_the_worker(service):
    body = {"model": service.upload()["id"], "budget": HALF}
    dataset = service.client.post("/v1/datasets", files={"file": ("d.npz", b"PK" * 25)}).json()["id"]
    service.publish(with_kinds())
    for options in (
        {"methods": [PENNI, MAGNITUDE]},
        {"methods": [MAGNITUDE, {**PENNI, "recipe": "closed_form"}]},
        {"methods": [PAPER], "dataset": dataset},
        {"methods": [MAGNITUDE], "plan": WIDTHS},
        {"methods": [MAGNITUDE], "budget": {"latency_ms": {"max": 5}}},
    ):
        assert service.client.post("/v1/jobs", json={**body, **options}).status_code == 201, options
    service.publish(CATALOGUE)
    assert service.client.post("/v1/jobs", json={**body, "methods": [MAGNITUDE, MAGNITUDE]}).status_code == 201


def test_gpu_may_be_asked_for_where_a_worker_has_one_or_none_has_told_yet(service):
    assert service.job(device="gpu")["request"]["device"] == "gpu"
    service.publish(CATALOGUE.model_copy(update={"devices": ["cpu", "NVIDIA H200"]}))
    assert service.job(device="gpu")["status"] == "queued"


def test_every_error_of_a_request_is_reported_at_once(client):
    answer = client.post("/v1/jobs", json={"budget": {"flops": {}}, "seed": -1, "sed": 0})
    assert set(pointers(answer)) == {"/budget/flops", "/seed", "/sed", "/model"}
    assert "3 more" in answer.json()["detail"]


def test_recovery_that_does_not_train_needs_no_dataset(service):
    assert service.job(recovery={"epochs": 0})["status"] == "queued"
    assert service.job(recovery={})["status"] == "queued"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Expecting value"),
        (b'{"model": ', "line 1"),
        (b'{"seed": Infinity}', "Infinity"),
        (b"\xff\xfe{}", "UTF"),
        (b'{"seed": 1, "seed": 2}', "twice"),
        (b'{"name": "\\udc80"}', "surrogate"),
        (b"[" * 100_000, "deep"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "digits"),
    ],
)
def test_body_that_is_not_json_is_a_400_that_says_why(client, body, words):
    assert words in problem(client.post("/v1/jobs", content=body, headers=JSON), 400, "malformed_json")["detail"]


def test_large_json_body_is_a_413_and_other_content_types_a_415(client):
    large = client.post("/v1/jobs", content=b" " * (2 << 20), headers=JSON)
    assert "1048576" in problem(large, 413, "too_large")["detail"]
    answer = client.post("/v1/jobs", content="<xml/>", headers={"Content-Type": "text/xml"})
    assert "application/json or multipart/form-data" in problem(answer, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize("job_first", [True, False])
def test_wrong_spec_in_a_form_keeps_nothing_wherever_it_stands(service, job_first):
    parts = [("spec", (None, spec(budget={"flops": {"max_ratio": 2}}))), ("model", ("net.pt", CHECKPOINT))]
    answer = service.client.post("/v1/jobs", files=parts if job_first else parts[::-1])
    assert "less than 1" in pointers(answer)["/spec/budget/flops/max_ratio"]
    assert service.stored_files() == []
    assert service.client.get("/v1/models").json()["data"] == []


@pytest.mark.parametrize(
    ("data", "files", "pointer"),
    [
        ({}, {"model": CHECKPOINT}, "/spec"),
        ({"spec": spec()}, {"dataset": b"images"}, "/model"),
        ({"spec": spec(model=NO_MODEL)}, {"model": CHECKPOINT}, "/spec/model"),
        ({"spec": spec(dataset=NO_DATASET)}, {"model": CHECKPOINT, "dataset": b"images"}, "/spec/dataset"),
        ({"spec": spec(), "scale": "255"}, {"model": CHECKPOINT}, "/scale"),
        ({"spec": spec(accuracy={"max_drop": 0.1})}, {"model": CHECKPOINT}, "/spec/accuracy"),
        ({"spec": spec(methods=[{"type": "wishful"}])}, {"model": CHECKPOINT}, "/spec/methods/0/type"),
    ],
)
def test_form_that_makes_no_sense_is_a_422_and_keeps_nothing(service, data, files, pointer):
    service.publish(CATALOGUE)
    answer = service.client.post("/v1/jobs", data=data, files={name: (name, body) for name, body in files.items()})
    assert pointer in pointers(answer)
    assert service.stored_files() == []
