"""`model.pwt` through the service and both programs: under its cap, with its accuracy, and read back with numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from pennyweight import Client, pwt
from safetensors.numpy import load_file

BIN = Path(sys.executable).parent
ARCHITECTURE = ("--architecture", "cifar_resnet", "--input-shape", "1x8x8")
ARGS = ("--architecture-args", '{"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}')


def test_job_delivers_a_pwt_file_under_its_cap(client: Client, digits_files, tmp_path):
    job = client.submit(
        digits_files.checkpoint,
        {
            "budget": {"size": {"max_ratio": 0.25}},
            "encoding": {"quantizer": "ecsq", "epochs": 2},
            "outputs": ["pwt", "safetensors", "onnx-int8"],
        },
        architecture="cifar_resnet",
        architecture_args={"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10},
        input_shape=[1, 8, 8],
        dataset_path=digits_files.dataset,
    )
    job = client.wait(job["id"], timeout_s=240)
    result = job["result"]
    (cap,) = result["constraints"]
    assert cap["met"] and 0.97 * cap["limit"] < cap["value"] <= cap["limit"]
    assert "encode" in {stage["name"] for stage in job["progress"]["stages"]}
    assert result["encoding"]["accuracy"]["after"]["test"] == result["compressed"]["accuracy"] > 0.9
    assert result["int8"]["accuracy"] > 0.9
    client.download(job["id"], tmp_path / "out")
    assert (tmp_path / "out" / "model.pwt").stat().st_size == cap["value"]
    assert (tmp_path / "out" / "model.int8.onnx").exists()
    plain = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in pwt.load(tmp_path / "out" / "model.pwt").items():
        np.testing.assert_array_equal(array, plain[name])


def test_both_programs_take_an_encoding(service_url, digits_files, tmp_path):
    options = ("--size", "30%", "--encoding", "uq:levels=64", "--outputs", "pwt", "--json", *ARCHITECTURE, *ARGS)
    alone = [BIN / "pennyweightd", "compress", digits_files.checkpoint, *options, "-o", tmp_path / "alone"]
    served = [BIN / "pennyweight", "compress", digits_files.checkpoint, *options, "-o", tmp_path / "served"]
    served += ["--url", service_url]
    results = []
    for command in (alone, served):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        results.append(document.get("result", document))
    assert all(result["encoding"]["quantizer"] == "uq" and result["met"] for result in results)
    files = [(tmp_path / name / "model.pwt").read_bytes() for name in ("alone", "served")]
    assert files[0] == files[1]


def test_an_encoding_that_does_not_exist_is_a_usage_error(digits_files, tmp_path):
    command = [BIN / "pennyweightd", "compress", digits_files.checkpoint, "--size", "30%", "--encoding", "kmeans"]
    done = subprocess.run(
        list(map(str, [*command, "-o", tmp_path / "out"])), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "encoding.quantizer" in done.stderr
