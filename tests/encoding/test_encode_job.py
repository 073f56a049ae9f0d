"""Jobs with an encoding: on digits, from the request to the files, the report and back to ONNX."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pennyweight import pwt
from pennyweight.pwt import onnx as pwt_onnx
from safetensors.numpy import load_file
from safetensors.torch import save_file

from core.budget import Budget, Cap
from core.encoding.container import read_pwt
from core.encoding.fine_tuning import fine_tune_shared, plan_run
from core.encoding.kernels import find_kernels, grouped
from core.encoding.options import EncodingOptions
from core.encoding.quantized import QuantizedTensor
from core.encoding.sharing import choices_at, rounded
from core.engine import CompressionRequest, compress, propose
from core.errors import EngineError
from core.recovery import load_dataset
from tests.core.recovery_cases import digits, save_digits, trained_network

ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def request_with_data(tmp_path_factory) -> CompressionRequest:
    folder = tmp_path_factory.mktemp("encoding")
    save_file({name: t.contiguous() for name, t in trained_network().tensors.items()}, folder / "model.safetensors")
    return CompressionRequest(
        folder / "model.safetensors",
        Budget((Cap("size", max_ratio=0.3),)),
        architecture="cifar_resnet",
        architecture_args=ARGS,
        input_shape=(1, 8, 8),
        dataset_path=save_digits(folder),
        encoding={"quantizer": "ecsq", "epochs": 2},
        outputs=("onnx", "onnx-int8", "safetensors", "pwt", "report"),
    )


@pytest.fixture(scope="module")
def job(request_with_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    return compress(request_with_data, folder), folder


def test_the_file_lands_under_its_cap_and_near_it(job):
    result, folder = job
    (cap,) = result["constraints"]
    size = (folder / "model.pwt").stat().st_size
    assert cap["met"] and cap["value"] == size == result["encoding"]["file_bytes"]
    assert 0.98 * cap["limit"] <= size <= cap["limit"]
    # The cap was for the encoding to keep: no channel is gone.
    assert result["compressed"]["params"] == result["baseline"]["params"]


def test_every_artifact_has_the_shared_values(job):
    result, folder = job
    stored, _ = read_pwt(folder / "model.pwt")
    plain = load_file(folder / "model.safetensors")
    graph = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "model.onnx").graph.initializer}
    names = {layer["name"] for layer in result["encoding"]["layers"]}
    assert names == {kernel.name for kernel in find_kernels(trained_network(), 0)}
    assert stored.keys() == plain.keys()
    for name, tensor in stored.items():
        assert isinstance(tensor, QuantizedTensor) == (name in names)
        values = tensor.values() if name in names else tensor
        np.testing.assert_array_equal(values, plain[name])
        if name in graph:
            np.testing.assert_array_equal(values, graph[name])
    assert names <= graph.keys()


def test_the_report_accounts_for_every_byte_and_the_accuracy(job):
    result, folder = job
    encoding = result["encoding"]
    assert encoding["coded_bytes"] == sum(layer["bytes"] for layer in encoding["layers"])
    # Tables for channels of different scale can take less than the entropy of all indices together.
    assert 0.8 * encoding["entropy_bytes"] <= encoding["coded_bytes"] <= 1.1 * encoding["entropy_bytes"] + 100
    assert encoding["psi"] == pytest.approx(encoding["coded_bytes"] / (4 * encoding["weights"]), abs=1e-6)
    for layer in encoding["layers"]:
        assert layer["bits_per_weight"] == pytest.approx(8 * layer["bytes"] / layer["weights"], abs=1e-4)
    accuracy = encoding["accuracy"]
    assert accuracy["before"]["test"] == result["baseline"]["accuracy"]
    assert accuracy["after"]["test"] == result["compressed"]["accuracy"] > 0.9
    assert encoding["fine_tuning"]["epochs"] == 2
    assert json.loads((folder / "report.json").read_text())["encoding"] == encoding
    page = (folder / "report.html").read_text()
    assert "<h2>Encoding</h2>" in page and "bits per weight" in page and "model.int8.onnx" in page


def test_the_pwt_file_turns_back_into_the_very_onnx_file(job, tmp_path):
    _, folder = job
    with pwt.open(folder / "model.pwt") as file:
        pwt_onnx.write(tmp_path / "back.onnx", file.onnx_skeleton, {name: file[name] for name in file.names})
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "back.onnx").read_bytes()
    images = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    one, two = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]
        for path in (folder / "model.onnx", tmp_path / "back.onnx")
    )
    assert one.tobytes() == two.tobytes()


def test_int8_is_an_ordinary_file_whose_accuracy_is_reported_beside_float(job):
    result, folder = job
    int8 = result["int8"]
    model = onnx.load(folder / "model.int8.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert not model.metadata_props and model.producer_name == "pennyweight"
    assert int8["float_accuracy"] == pytest.approx(result["compressed"]["accuracy"], abs=0.003)
    assert int8["accuracy"] > int8["float_accuracy"] - 0.03 and 0 < int8["output_error"] < 0.2
    assert int8["file_bytes"] == (folder / "model.int8.onnx").stat().st_size < 0.6 * int8["float_file_bytes"]
    images, labels, split = digits()
    session = onnxruntime.InferenceSession(str(folder / "model.int8.onnx"), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": images[split == "test"][:, None].astype(np.float32) / 255})
    assert (scores.argmax(1) == labels[split == "test"]).mean() == pytest.approx(int8["accuracy"], abs=0.003)


def test_a_cap_far_below_what_bits_can_do_takes_channels_too(request_with_data, tmp_path):
    small = dataclasses.replace(
        request_with_data,
        budget=Budget((Cap("size", maximum=9000),)),
        outputs=("pwt",),
        recovery={"epochs": 0},
        encoding={"quantizer": "ecsq", "epochs": 0},
    )
    result = compress(small, tmp_path)
    assert result["met"] and result["compressed"]["params"] < result["baseline"]["params"]
    assert result["constraints"][0]["value"] == (tmp_path / "model.pwt").stat().st_size <= 9000


def test_without_data_the_distance_of_the_outputs_is_reported(request_with_data, tmp_path):
    blind = dataclasses.replace(request_with_data, dataset_path=None, encoding={"quantizer": "uq"}, outputs=("pwt",))
    result = compress(blind, tmp_path)
    assert result["met"] and result["compressed"]["accuracy"] is None
    assert 0 < result["encoding"]["output_error"]["shared"] < 0.2


def test_weights_as_they_are_fit_their_cap_too(request_with_data, tmp_path):
    plain = dataclasses.replace(
        request_with_data,
        encoding={},
        outputs=("pwt",),
        dataset_path=None,
        budget=Budget((Cap("size", max_ratio=0.6),)),
    )
    result = compress(plain, tmp_path)
    (cap,) = result["constraints"]
    assert cap["met"] and 0.9 * cap["limit"] < cap["value"] == (tmp_path / "model.pwt").stat().st_size
    stored, _ = read_pwt(tmp_path / "model.pwt")
    assert all(isinstance(value, np.ndarray) for value in stored.values())


def test_levels_prune_and_a_format_are_taken_as_asked(request_with_data, tmp_path):
    asked = dataclasses.replace(
        request_with_data,
        budget=Budget((Cap("macs", max_ratio=0.9),)),
        recovery={"epochs": 0},
        encoding={"quantizer": "cws", "levels": 6, "prune": 50.0, "format": "shac", "unified": True, "epochs": 1},
        outputs=("pwt",),
    )
    layers = compress(asked, tmp_path)["encoding"]["layers"]
    assert all(layer["levels"] <= 6 and layer["format"] == "shac" for layer in layers)
    assert all(0.45 <= layer["zeros"] / layer["weights"] <= 0.6 for layer in layers)


def test_a_plan_leaves_the_cap_to_the_encoding(request_with_data):
    plan = propose(
        dataclasses.replace(request_with_data, dataset_path=None, outputs=("pwt",), encoding={"quantizer": "uq"})
    )
    assert plan["feasible"] and plan["constraints"] == [] and "model.pwt" in plan["note"]


def test_what_needs_images_says_so(request_with_data, tmp_path):
    blind = dataclasses.replace(request_with_data, dataset_path=None)
    for changes, param in (({}, "/outputs"), ({"outputs": ("pwt",)}, "/encoding/epochs")):
        with pytest.raises(EngineError, match="dataset") as refused:
            compress(dataclasses.replace(blind, **changes), tmp_path)
        assert (refused.value.code, refused.value.param) == ("dataset_invalid", param)


@pytest.mark.parametrize("labelled", [True, False])
def test_fine_tuning_moves_values_and_never_who_shares_them(labelled, tmp_path):
    images, _, split = digits()
    path = save_digits(tmp_path)
    if not labelled:
        np.savez(path, x=images, split=split)
    dataset = load_dataset(path)
    network = trained_network()
    options = EncodingOptions("cws", 4, prune=40.0)
    groups = grouped(find_kernels(network, options.prune), unified=False)
    start = rounded(network, choices_at(groups, options), 0)
    run = plan_run(network, len(dataset.train), 2, CPU)

    def tuned():
        return fine_tune_shared(start, network, dataset, run, seed=0, device=CPU, tell=lambda step, text: None)

    learnt, again = tuned(), tuned().network
    found, tensors = learnt.network, start.tensors
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
    for name, before in tensors.items():
        after = learnt.tensors[name]
        assert len(after.codebook) <= len(before.codebook) and (np.diff(after.codebook) > 0).all()
        assert ((after.indices == after.zero) == (before.indices == before.zero)).all()
        np.testing.assert_array_equal(found.tensors[name].numpy(), after.values())
        # Whoever shared a value still does.
        for index in range(len(before.codebook)):
            assert len(np.unique(after.indices[before.indices == index])) == 1
    inputs = dataset.prepare(dataset.val.images)

    def error(net) -> float:
        return float((net.run(inputs)[0] - network.run(inputs)[0]).norm())

    assert error(found) < 0.8 * error(start.network)


def test_a_cap_below_every_file_is_refused_by_the_file_that_was_reached(request_with_data, tmp_path):
    """Not by the planner, which knows channels and not what sharing values makes of them."""
    tiny = dataclasses.replace(
        request_with_data,
        budget=Budget((Cap("size", 800),)),
        dataset_path=None,
        encoding={"quantizer": "ecsq"},
        outputs=("pwt",),
    )
    with pytest.raises(EngineError, match=r"size 2,\d{3} where 800 is the limit") as refused:
        compress(tiny, tmp_path)
    assert (refused.value.code, refused.value.param) == ("target_unmet", "/budget/size")
