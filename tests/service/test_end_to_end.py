"""The main job over HTTP, in a real service: budgets met exactly, artifacts that stand alone, a history that is told."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from pennyweight import ApiError, Client, JobFailed

from tests.service.conftest import ARGS, Digits

OPTIONS = {"architecture": "cifar_resnet", "architecture_args": ARGS, "input_shape": [1, 8, 8]}


def files(folder: Path) -> list[Path]:
    """What was downloaded; importing model.py leaves a cache folder beside it."""
    return [path for path in folder.iterdir() if path.is_file()]


@pytest.fixture(scope="module")
def finished(service_url: str, digits_files: Digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """One job with recovery, and the folder with its artifacts."""
    with Client(service_url) as client:
        job = client.submit(
            digits_files.checkpoint,
            {"name": "digits", "labels": {"suite": "end-to-end"}, "budget": {"flops": {"max_ratio": 0.4}}},
            dataset_path=digits_files.dataset,
            **OPTIONS,
        )
        job = client.wait(job["id"], timeout_s=300)
        folder = tmp_path_factory.mktemp("artifacts")
        client.download(job["id"], folder)
    return job, folder


def test_budget_is_met_and_used_and_the_surgery_verified(finished):
    result = finished[0]["result"]
    (constraint,) = result["constraints"]
    assert result["met"] and constraint["met"]
    assert constraint["limit"] == int(0.4 * result["baseline"]["flops"])
    assert 0.95 * constraint["limit"] <= constraint["value"] <= constraint["limit"]
    assert result["compressed"]["flops"] == constraint["value"] == 2 * result["compressed"]["macs"]
    assert result["equivalence"]["passed"] and result["equivalence"]["max_relative_error"] < 1e-9


def test_accuracy_is_measured_on_the_test_split_and_comes_back(finished, digits_files: Digits):
    job, folder = finished
    test = digits_files.split == "test"
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = digits_files.images[test].astype(np.float32) / 255
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    accuracy = float((logits.argmax(1) == digits_files.labels[test]).mean())
    assert job["result"]["compressed"]["accuracy"] == pytest.approx(accuracy, abs=0.003)
    assert accuracy > job["result"]["baseline"]["accuracy"] - 0.05


def test_model_py_runs_in_a_bare_interpreter_and_agrees_with_onnx(finished, tmp_path):
    _, folder = finished
    inputs = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    script = (
        "import sys, torch, numpy as np, importlib.util as u\n"
        "s = u.spec_from_file_location('m', sys.argv[1] + '/model.py'); m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "x = torch.from_numpy(np.load(sys.argv[2]))\n"
        "np.save(sys.argv[3], m.load(sys.argv[1] + '/model.safetensors')(x).detach().numpy())\n"
        "assert not {'core', 'store', 'safetensors', 'worker'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-I", "-c", script, str(folder), str(tmp_path / "inputs.npy"), str(tmp_path / "o.npy")]
    subprocess.run(command, check=True, cwd=tmp_path)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: inputs})
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), expected, rtol=1e-4, atol=1e-5)


def test_manifest_names_every_other_artifact_with_its_digest(finished):
    job, folder = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder)}
    digests.pop("manifest.json")
    listed = manifest["artifacts"] if isinstance(manifest, dict) else manifest
    assert {entry["name"]: entry["sha256"] for entry in listed} == digests
    report = json.loads((folder / "report.json").read_text())
    assert {a["name"] for a in report["artifacts"]} == set(digests) - {"report.json"}
    assert report["compressed"] == job["result"]["compressed"]


def test_no_artifact_holds_a_pickle_or_a_path_of_the_server(finished):
    _, folder = finished
    checkout = str(Path(__file__).resolve().parents[2]).encode()
    for path in files(folder):
        data = path.read_bytes()
        assert checkout not in data, path.name
        assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path.name
        if zipfile.is_zipfile(path):
            assert not [name for name in zipfile.ZipFile(path).namelist() if name.endswith((".pkl", ".pt"))], path.name


def test_polling_is_cheap_and_honest(finished, client: Client):
    url = f"{client.base_url}/v1/jobs/{finished[0]['id']}"
    first = httpx.get(url)
    assert first.status_code == 200 and "Retry-After" not in first.headers
    again = httpx.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304 and again.content == b""
    assert httpx.get(url.replace("/v1", "")).json()["id"] == finished[0]["id"]


def test_events_tell_the_whole_story_in_order(finished, client: Client):
    events = list(client.events(finished[0]["id"]))
    types = [event["type"] for event in events]
    assert types[0] == "job.queued" and types[-1] == "job.succeeded"
    assert types.count("job.succeeded") == 1


def test_labels_find_the_job(finished, client: Client):
    found = httpx.get(f"{client.base_url}/v1/jobs", params={"label.suite": "end-to-end"}).json()["data"]
    assert [job["id"] for job in found] == [finished[0]["id"]]
    assert httpx.get(f"{client.base_url}/v1/jobs", params={"label.suite": "other"}).json()["data"] == []


@pytest.mark.parametrize(
    "budget",
    [
        {"params": {"max_ratio": 0.3}},
        {"macs": {"max_ratio": 0.5}},
        {"memory": {"max_ratio": 0.6}},
        {"memory": {"max_ratio": 0.5, "kind": "weights"}},
        {"memory": {"max_ratio": 0.7, "kind": "activations"}},
        {"flops": {"max_ratio": 0.4}, "params": {"max_ratio": 0.6}, "memory": {"max_ratio": 0.6}},
    ],
    ids=lambda budget: "+".join(f"{m}:{c.get('kind', '')}" for m, c in budget.items()),
)
def test_every_kind_of_cap_is_met_data_free(client: Client, random_checkpoint, budget):
    job = client.submit(random_checkpoint, {"budget": budget, "outputs": ["safetensors", "report"]}, **OPTIONS)
    result = client.wait(job["id"], timeout_s=120)["result"]
    assert result["met"]
    assert all(c["value"] <= c["limit"] for c in result["constraints"])
    assert max(c["value"] / c["limit"] for c in result["constraints"]) > 0.9
    assert result["equivalence"]["passed"]


def test_dataset_that_was_uploaded_before_serves_a_job(client: Client, digits_files: Digits):
    model = client.wait_inspected(client.upload_model(digits_files.checkpoint, **OPTIONS))
    dataset = client.wait_inspected(client.upload_dataset(digits_files.dataset, name="digits"))
    assert (dataset["classes"], dataset["image_shape"]) == (10, [1, 8, 8])
    job = client.create_job(
        model["id"],
        {"flops": {"max_ratio": 0.5}},
        dataset=dataset["id"],
        recovery={"epochs": 1},
        outputs=["safetensors", "report"],
    )
    result = client.wait(job["id"], timeout_s=180)["result"]
    assert job["dataset"] == dataset["id"] and result["met"]
    assert result["compressed"]["accuracy"] > 0.5


def test_network_already_within_its_budget_succeeds_unchanged(client: Client, digits_files: Digits):
    spec = {"budget": {"params": {"max": 10**9}}, "outputs": ["safetensors", "report"]}
    result = client.wait(client.submit(digits_files.checkpoint, spec, **OPTIONS)["id"], timeout_s=120)["result"]
    for cost in ("params", "macs", "peak_activation_bytes"):
        assert result["compressed"][cost] == result["baseline"][cost]


def test_cancel_of_a_running_job_ends_it_once(client: Client, digits_files: Digits):
    spec = {"budget": {"flops": {"max_ratio": 0.5}}, "recovery": {"epochs": 1000}}
    job = client.submit(digits_files.checkpoint, spec, dataset_path=digits_files.dataset, **OPTIONS)
    training = threading.Event()

    def cancel_in_recovery(state):
        if state["status"] == "running" and state["stage"] == "recover" and not training.is_set():
            training.set()
            assert client.cancel(job["id"])["status"] == "cancelling"

    with pytest.raises(JobFailed) as ended:
        client.wait(job["id"], on_change=cancel_in_recovery, timeout_s=180)
    assert ended.value.code == "cancelled" and training.is_set()
    assert client.cancel(job["id"])["status"] == "cancelled"
    assert client.artifacts(job["id"]) == []


def test_cancel_of_a_finished_job_is_a_conflict(finished, client: Client):
    with pytest.raises(ApiError) as refused:
        client.cancel(finished[0]["id"])
    assert (refused.value.status, refused.value.code) == (409, "job_not_cancellable")


def test_two_runs_with_one_seed_deliver_the_same_bytes(client: Client, random_checkpoint, tmp_path):
    digests = []
    for _ in range(2):
        spec = {"budget": {"flops": {"max_ratio": 0.5}}, "outputs": ["safetensors", "report"], "seed": 3}
        job = client.wait(client.submit(random_checkpoint, spec, **OPTIONS)["id"], timeout_s=120)
        digests.append({a["name"]: a["sha256"] for a in job["result"]["artifacts"]}["model.safetensors"])
    assert digests[0] == digests[1]


def test_pytorch_checkpoint_in_both_forms_gives_the_same_model_as_safetensors(client, digits_files, tmp_path):
    from safetensors.torch import load_file

    state = load_file(digits_files.checkpoint)
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "best_prec1": 97.5}
    torch.save(wrapped, tmp_path / "zip.pt")
    torch.save(wrapped, tmp_path / "stream.th", _use_new_zipfile_serialization=False)
    digests = set()
    for path in (digits_files.checkpoint, tmp_path / "zip.pt", tmp_path / "stream.th"):
        spec = {"budget": {"params": {"max_ratio": 0.5}}, "outputs": ["safetensors", "report"]}
        job = client.wait(client.submit(path, spec, **OPTIONS)["id"], timeout_s=120)
        digests.add({a["name"]: a["sha256"] for a in job["result"]["artifacts"]}["model.safetensors"])
    assert len(digests) == 1


def test_generated_module_is_importable_as_documented(finished):
    _, folder = finished
    spec = importlib.util.spec_from_file_location("delivered", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load(folder / "model.safetensors")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
