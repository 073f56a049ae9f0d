"""ONNX in and out through the service and both programs: the file that comes back is used exactly as the one that went in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pennyweight import Client, JobFailed

BIN = Path(sys.executable).parent
OUTPUTS = ["onnx", "report"]


def two_cameras(path: Path, *, operator: str = "Relu", sizes: tuple[object, object] = ("height", "width")) -> Path:
    """Two images in, two results out, named as nobody else would; any batch, any height and width."""
    random = np.random.default_rng(0)
    constants: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:], initial=1))
        constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    nodes = []
    for side in ("left", "right"):
        weights = [weight(f"{side}.weight", 16, 3, 3, 3), weight(f"{side}.bias", 16)]
        nodes += [
            helper.make_node("Conv", [f"{side}:0", *weights], [f"{side}/c"], pads=[0, 0, 1, 1], strides=[2, 2]),
            helper.make_node(operator, [f"{side}/c"], [f"{side}/r"], name=f"{side}/act"),
        ]
    nodes += [
        helper.make_node("Concat", ["left/r", "right/r"], ["both"], axis=1),
        helper.make_node("Conv", ["both", weight("mix.weight", 24, 32, 3, 3)], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["mixed"], ["features"]),
        helper.make_node("Conv", ["features", weight("map.weight", 1, 24, 1, 1)], ["depth map"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", weight("fc.weight", 5, 24), weight("fc.bias", 5)], ["scores"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info(f"{s}:0", TensorProto.FLOAT, ["n", 3, *sizes]) for s in ("left", "right")]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5]),
        helper.make_tensor_value_info("depth map", TensorProto.FLOAT, ["n", 1, None, None]),
    ]
    graph = helper.make_graph(nodes, "cameras", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


SHAPES = {"left:0": [3, 16, 16], "right:0": [3, 16, 16]}


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def assert_same_use(before: Path, after: Path) -> None:
    """Names, order and open axes; and it runs with another batch and another size."""
    old, new = session_of(before), session_of(after)
    assert [one.name for one in new.get_outputs()] == [one.name for one in old.get_outputs()]
    assert [(one.name, one.shape) for one in new.get_inputs()] == [(one.name, one.shape) for one in old.get_inputs()]
    feeds = {one.name: np.ones((2, 3, 24, 20), np.float32) for one in old.get_inputs()}
    assert [one.shape for one in new.run(None, feeds)] == [one.shape for one in old.run(None, feeds)]


def run(program: str, *arguments: object, url: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "200", **({"PENNYWEIGHT_URL": url} if url else {})}
    command = [str(BIN / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)


def test_upload_inspect_compress_download(client: Client, tmp_path):
    upload = two_cameras(tmp_path / "cameras.onnx")
    model = client.upload_model(upload, input_shape=SHAPES)
    job = client.create_job(model["id"], {"macs": {"max_ratio": 0.6}}, outputs=OUTPUTS)
    job = client.wait(job["id"], timeout_s=180)
    result = job["result"]
    assert result["met"] and result["equivalence"]["passed"]
    assert 0.95 * 0.6 < result["compressed"]["macs"] / result["baseline"]["macs"] <= 0.6
    assert result["provenance"]["input_shape"] == SHAPES
    inspected = client.model(model["id"])
    assert (inspected["format"], inspected["architecture"], inspected["input_shape"]) == ("onnx", None, SHAPES)
    client.download(job["id"], tmp_path / "out")
    assert_same_use(upload, tmp_path / "out" / "model.onnx")


def test_open_sizes_and_unread_operators_are_told_in_the_inspection(client: Client, tmp_path):
    for path, code, words in (
        (two_cameras(tmp_path / "open.onnx"), "shape_mismatch", '"right:0": [3, 224, 224]'),
        (two_cameras(tmp_path / "odd.onnx", operator="Hardmax"), "unsupported_format", "Hardmax ×2"),
    ):
        with pytest.raises(JobFailed) as refusal:
            client.wait_inspected(client.upload_model(path))
        assert refusal.value.error["code"] == code and words in refusal.value.error["message"]


def test_the_client_takes_shapes_by_name(service_url, tmp_path):
    upload = two_cameras(tmp_path / "cameras.onnx")
    options = ["--input-shape", "left:0=3x16x16,right:0=3x16x16", "--macs", "60%", "--outputs", ",".join(OUTPUTS)]
    done = run("pennyweight", "compress", upload, *options, "-o", tmp_path / "out", url=service_url)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["met"]
    assert_same_use(upload, tmp_path / "out" / "model.onnx")


def test_a_network_of_fixed_size_needs_nothing_but_the_file(tmp_path):
    upload = two_cameras(tmp_path / "cameras.onnx", sizes=(16, 16))
    done = run(
        "pennyweightd",
        "compress",
        upload,
        "--macs",
        "60%",
        "--outputs",
        "onnx",
        "--onnx-opset",
        "17",
        "-o",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    new = session_of(tmp_path / "out" / "model.onnx")
    assert onnx.load(tmp_path / "out" / "model.onnx").opset_import[0].version == 17
    assert [one.shape for one in new.get_inputs()] == [["n", 3, 16, 16]] * 2
