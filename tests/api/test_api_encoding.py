"""What a job body may say of its encoding, and what is refused, field by field."""

from __future__ import annotations

import pytest

from tests.api.conftest import HALF, pointers


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"encoding": {"quantizer": "kmeans"}}, "/encoding/quantizer", "ecsq"),
        ({"encoding": {"quantizer": "cws", "levels": 257}}, "/encoding/levels", "256"),
        ({"encoding": {"quantizer": "cws", "levels": 4, "bits": 2}}, "/encoding", "not both"),
        ({"encoding": {"quantizer": "cws", "prune": 100}}, "/encoding/prune", "less than 100"),
        ({"encoding": {"prune": 50}}, "/encoding", "needs a quantizer"),
        ({"encoding": {"format": "ans"}}, "/encoding", "needs a quantizer"),
        ({"encoding": {"quantizer": "uq", "delta": 0.1}}, "/encoding/delta", "Unknown field"),
        ({"encoding": {"quantizer": "uq", "epochs": 2}}, "/encoding/epochs", "dataset"),
        ({"outputs": ["onnx-int8"]}, "/outputs", "dataset"),
    ],
)
def test_encoding_that_makes_no_sense_is_a_422_pointing_at_the_field(service, change, pointer, words):
    body = {"model": service.upload()["id"], "budget": HALF, **change}
    assert words in pointers(service.client.post("/v1/jobs", json=body))[pointer]


def test_encoding_is_kept_with_its_defaults(service):
    asked = {"quantizer": "ecsq", "bits": 4, "prune": 30}
    body = {"model": service.upload()["id"], "budget": HALF, "encoding": asked, "outputs": ["pwt"]}
    encoding = service.client.post("/v1/jobs", json=body).json()["request"]["encoding"]
    assert encoding == {
        "quantizer": "ecsq",
        "levels": None,
        "bits": 4,
        "prune": 30,
        "unified": False,
        "format": "auto",
        "epochs": None,
    }
