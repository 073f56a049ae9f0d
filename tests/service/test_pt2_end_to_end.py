"""A `.pt2` upload through the service and both programs: what comes back is an exported program and goes in again."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from pennyweight import Client, JobFailed
from torch import nn

BIN = Path(sys.executable).parent


def exported(path: Path) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()
    program = torch.export.export(
        module, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path)
    return path


def test_upload_inspect_compress_download_and_back_in(client: Client, tmp_path):
    model = client.upload_model(exported(tmp_path / "net.pt2"))
    job = client.create_job(model["id"], {"macs": {"max_ratio": 0.6}}, outputs=["pt2", "onnx", "report"])
    job = client.wait(job["id"], timeout_s=180)
    result = job["result"]
    assert result["met"] and result["equivalence"]["passed"]
    assert 0.9 * 0.6 < result["compressed"]["macs"] / result["baseline"]["macs"] <= 0.6
    inspected = client.model(model["id"])
    assert (inspected["format"], inspected["architecture"], inspected["input_shape"]) == ("pt2", None, [3, 16, 16])
    assert {"model.pt2", "model.onnx"} <= {artifact["name"] for artifact in result["artifacts"]}
    client.download(job["id"], tmp_path / "out")
    delivered = tmp_path / "out" / "model.pt2"
    module = torch.export.load(delivered).module()
    assert module(torch.zeros(5, 3, 16, 16)).shape == (5, 5)
    again = client.wait_inspected(client.upload_model(delivered))
    assert again["profile"]["macs"] == result["compressed"]["macs"] and again["format"] == "pt2"


def test_a_program_with_foreign_operators_is_rejected_with_their_names(client: Client, tmp_path):
    path = exported(tmp_path / "net.pt2")
    foreign = tmp_path / "foreign.pt2"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(foreign, "w") as changed:
        for name in archive.namelist():
            changed.writestr(
                name, archive.read(name).replace(b"torch.ops.aten.relu.default", b"torch.ops.mine.relu.default")
            )
    with pytest.raises(JobFailed) as refusal:
        client.wait_inspected(client.upload_model(foreign))
    error = refusal.value.error
    assert error["code"] == "unsupported_format" and "torch.ops.mine.relu.default (2×)" in error["message"]


def test_the_engine_without_a_server_takes_and_gives_the_format(tmp_path):
    upload = exported(tmp_path / "net.pt2")
    command = [str(BIN / "pennyweightd"), "compress", str(upload), "--macs", "60%", "--outputs", "pt2"]
    done = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert torch.export.load(tmp_path / "out" / "model.pt2").module()(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
