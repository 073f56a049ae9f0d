"""Whatever a user sends that cannot work comes back with its cause, by the route that first can know it."""

from __future__ import annotations

import io
import pickle
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from pennyweight import ApiError, Client, JobFailed
from safetensors.torch import load_file, save_file

from tests.service.conftest import ARGS, Digits

HALF = {"flops": {"max_ratio": 0.5}}


def submit(client: Client, checkpoint: Path, spec: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    options = {"architecture": "cifar_resnet", "architecture_args": ARGS, "input_shape": [1, 8, 8], **options}
    return client.submit(checkpoint, {"budget": HALF, **(spec or {})}, **options)


def failure(client: Client, job: dict[str, Any]) -> JobFailed:
    with pytest.raises(JobFailed) as failed:
        client.wait(job["id"], timeout_s=120)
    return failed.value


def test_file_that_is_no_checkpoint(client, tmp_path):
    (tmp_path / "letter.pt").write_bytes(b"Dear madam, please find no weights attached.\n" * 20)
    error = failure(client, submit(client, tmp_path / "letter.pt"))
    assert error.code in ("invalid_model", "unsupported_format")
    assert "safetensors" in str(error)


def test_empty_file_is_refused_before_anything_is_stored(client, tmp_path):
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ApiError, match="empty") as refused:
        submit(client, tmp_path / "empty.pt")
    assert refused.value.status == 422


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_file(client, digits_files: Digits, tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    state = load_file(digits_files.checkpoint)
    save_file(state, whole) if suffix == "safetensors" else torch.save(state, whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:-1000])
    error = failure(client, submit(client, cut))
    assert error.code == "invalid_model"
    assert "truncated" in str(error).lower()


class _Payload:
    """Unpickled by anyone who trusts it, this leaves a file behind."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self):
        return Path.touch, (self.evidence,)


@pytest.mark.parametrize("zip_form", [True, False])
def test_pickle_with_a_forbidden_global_is_refused_by_name_and_nothing_runs(client, tmp_path, zip_form):
    evidence = tmp_path / "it-ran"
    hostile = tmp_path / "hostile.pt"
    state = {"conv1.weight": torch.zeros(2, 2), "note": _Payload(evidence)}
    torch.save(state, hostile, _use_new_zipfile_serialization=zip_form)
    error = failure(client, submit(client, hostile))
    assert error.code == "unsafe_model"
    assert "Path.touch" in str(error) or "pathlib" in str(error) or "getattr" in str(error)
    assert not evidence.exists()
    torch.load(hostile, weights_only=False)
    assert evidence.exists(), "the payload must be a live one for its silence to mean anything"


def test_bare_pickle_is_refused_and_nothing_runs(client, tmp_path):
    evidence = tmp_path / "it-ran"
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(pickle.dumps(_Payload(evidence)))
    error = failure(client, submit(client, hostile))
    assert error.code in ("unsafe_model", "unsupported_format", "invalid_model")
    assert not evidence.exists()


def test_state_dict_of_another_architecture_names_keys_and_shapes(client, digits_files: Digits, tmp_path):
    state = load_file(digits_files.checkpoint)
    state["head.weight"] = state.pop("linear.weight").clone()
    state["layer1.0.conv1.weight"] = torch.zeros(8, 8, 5, 5)
    save_file(state, tmp_path / "other.safetensors")
    error = failure(client, submit(client, tmp_path / "other.safetensors"))
    assert error.code == "architecture_mismatch"
    for name in ("head.weight", "linear.weight", "layer1.0.conv1.weight"):
        assert name in str(error)


def test_unknown_architecture_suggests_the_nearest(client, digits_files: Digits):
    with pytest.raises((ApiError, JobFailed), match="cifar_resnet20") as refused:
        job = submit(client, digits_files.checkpoint, architecture="cifar_resnet21", architecture_args=None)
        client.wait(job["id"], timeout_s=60)
    assert refused.value.code == "unknown_architecture"


def test_weights_that_are_not_finite_are_named(client, digits_files: Digits, tmp_path):
    state = load_file(digits_files.checkpoint)
    state["layer2.0.bn1.weight"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    error = failure(client, submit(client, tmp_path / "nan.safetensors"))
    assert error.code == "invalid_model"
    assert "layer2.0.bn1.weight" in str(error)


def test_input_shape_that_the_network_cannot_take(client, digits_files: Digits):
    error = failure(client, submit(client, digits_files.checkpoint, input_shape=[3, 8, 8]))
    assert error.code == "shape_mismatch"
    assert "1" in str(error) and "3" in str(error)


@pytest.mark.parametrize(
    ("spec", "pointer", "words"),
    [
        ({"budget": {}}, "/budget", "at least one cap"),
        ({"budget": None}, "/budget", ""),
        ({"budget": {"flops": {"max_ratio": 0.0}}}, "/budget/flops/max_ratio", "greater than 0"),
        ({"budget": {"flops": {"max_ratio": 1.0}}}, "/budget/flops/max_ratio", "less than 1"),
        ({"budget": {"flops": {"max_ratio": 0.5, "max": 10}}}, "/budget/flops", "not both"),
        ({"budget": {"flops": {}}}, "/budget/flops", "max_ratio"),
        ({"budget": {"flops": {"max": -3}}}, "/budget/flops/max", "greater than 0"),
        ({"budget": {"memory": {"max": 10, "kind": "ram"}}}, "/budget/memory/kind", "weights"),
        ({"budget": HALF, "bugdet": HALF}, "/bugdet", ""),
        ({"budget": HALF, "outputs": ["onnx", "coreml"]}, "/outputs/1", "safetensors"),
        ({"budget": HALF, "methods": [{"type": "wishful"}]}, "/methods/0/type", "magnitude"),
        ({"budget": HALF, "methods": [{"type": "magnitude", "rond_to": 8}]}, "/methods/0", "rond_to"),
        ({"budget": HALF, "methods": [{"type": "penni"}, {"type": "penni"}]}, "/methods", "both rewrite layers"),
        ({"budget": HALF, "methods": [{"type": "penni", "recipe": "paper"}]}, "/methods/0/recipe", "labelled dataset"),
        ({"budget": HALF, "seed": -1}, "/seed", ""),
        ({"budget": HALF, "accuracy": {"max_drop": 0.01}}, "/accuracy", "dataset"),
    ],
)
def test_request_that_makes_no_sense_is_a_422_pointing_at_the_field(client, digits_files: Digits, spec, pointer, words):
    model = client.upload_model(digits_files.checkpoint, architecture="cifar_resnet", input_shape=[1, 8, 8])
    client.wait_inspected(model)
    body = {"model": model["id"], **spec}
    answer = httpx.post(f"{client.base_url}/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    errors = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
    assert pointer in errors, errors
    assert words in errors[pointer]


def test_infeasible_budget_says_the_smallest_reachable_within_seconds(client, digits_files: Digits):
    started = time.monotonic()
    job = submit(client, digits_files.checkpoint, {"budget": {"flops": {"max_ratio": 0.001}}})
    error = failure(client, job)
    assert error.code == "target_infeasible"
    smallest = error.error["details"]["smallest"]
    assert f"{smallest['flops']:,}" in str(error) or str(smallest["flops"]) in str(error)
    assert time.monotonic() - started < 20
    reachable = submit(client, digits_files.checkpoint, {"budget": {"flops": {"max": smallest["flops"]}}})
    assert client.wait(reachable["id"], timeout_s=120)["result"]["met"]


def test_infeasible_budget_with_best_effort_delivers_the_smallest_and_says_unmet(client, digits_files: Digits):
    spec = {"budget": {"flops": {"max_ratio": 0.001}}, "on_unmet": "best_effort", "outputs": ["safetensors", "report"]}
    result = client.wait(submit(client, digits_files.checkpoint, spec)["id"], timeout_s=120)["result"]
    assert result["met"] is False
    assert [c["met"] for c in result["constraints"]] == [False]


def dataset_failure(client: Client, files: Digits, dataset: Path) -> JobFailed:
    return failure(client, submit(client, files.checkpoint, dataset_path=dataset))


def test_dataset_whose_images_do_not_fit_the_network(client, digits_files: Digits, tmp_path):
    wide = np.repeat(digits_files.images, 3, axis=1)
    np.savez(tmp_path / "wide.npz", images=wide, labels=digits_files.labels)
    error = dataset_failure(client, digits_files, tmp_path / "wide.npz")
    assert error.code == "dataset_invalid"
    assert "3" in str(error) and "1" in str(error)


def test_dataset_whose_labels_exceed_the_classes(client, digits_files: Digits, tmp_path):
    labels = digits_files.labels.copy()
    labels[7] = 12
    np.savez(tmp_path / "labels.npz", images=digits_files.images, labels=labels)
    error = dataset_failure(client, digits_files, tmp_path / "labels.npz")
    assert error.code == "dataset_invalid"
    assert "12" in str(error) and "10" in str(error)


def test_baseline_near_chance_names_normalisation_and_label_order(client, digits_files: Digits, tmp_path):
    shifted = (digits_files.labels + 3) % 10
    np.savez(tmp_path / "shifted.npz", images=digits_files.images, labels=shifted)
    error = dataset_failure(client, digits_files, tmp_path / "shifted.npz")
    assert error.code == "dataset_invalid"
    assert "normali" in str(error).lower() and "order" in str(error).lower()


def test_corrupt_dataset_archive(client, digits_files: Digits, tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("train-0.parquet")
        info.size = 100
        tar.addfile(info, io.BytesIO(b"PAR1" + bytes(96)))
    error = dataset_failure(client, digits_files, tmp_path / "bad.tar")
    assert error.code == "dataset_invalid"
    assert "train-0.parquet" in str(error)


def test_job_on_a_model_that_was_rejected(client, tmp_path):
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 8)
    model = client.upload_model(tmp_path / "noise.pt", architecture="cifar_resnet20")
    with pytest.raises(JobFailed):
        client.wait_inspected(model)
    with pytest.raises((ApiError, JobFailed)):
        client.wait(client.create_job(model["id"], HALF)["id"], timeout_s=30)
