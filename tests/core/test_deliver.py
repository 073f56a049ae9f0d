"""What is delivered loads without us, says nothing of the machine that made it, and is what was verified."""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core.architectures import build
from core.deliver import OUTPUTS, deliver
from core.deliver import onnx_file as onnx_file_module
from core.deliver.difference import relative_error
from core.deliver.onnx_file import open_session, write_onnx
from core.deliver.pwt_file import Compact
from core.errors import EngineError
from core.network import Network
from core.recovery import ImageDataset, Split
from tests.core.report_cases import result

MODEL_FILES = {"model.onnx", "model.int8.onnx", "model.pt2", "model.safetensors", "model.py", "model.pwt"}
ARGS = {"depth": 8, "width": 4, "in_channels": 1, "num_classes": 10}


def small_network(seed: int) -> Network:
    torch.manual_seed(seed)
    model = build("cifar_resnet", ARGS)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    return Network.from_module(model, {"image": (1, 8, 8)}, architecture="cifar_resnet", architecture_args=ARGS)


def noise_images() -> ImageDataset:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8))
    splits = (Split(part, None) for part in images.split(8))
    return ImageDataset("npz", None, *splits, None, 255.0)


@pytest.fixture(scope="module")
def delivery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("delivery")
    network = small_network(0)
    done = deliver(small_network(1), network, OUTPUTS, folder, compact=Compact({}), dataset=noise_images())
    done.write_report(result())
    return network, done, folder


def test_every_asked_for_file_is_there_and_nothing_else(delivery):
    names = {path.name for path in delivery[2].iterdir()}
    assert names == MODEL_FILES | {"report.html", "report.json", "manifest.json"}


def test_onnx_computes_the_network_at_any_batch_under_its_input_name(delivery):
    network, _, folder = delivery
    session = open_session(folder / "model.onnx")
    assert [i.name for i in session.get_inputs()] == ["image"] and [o.name for o in session.get_outputs()] == ["output"]
    for batch in (1, 2, 7):
        (x,) = network.random_inputs(batch=batch, seed=batch)
        (got,) = session.run(None, {"image": x.numpy()})
        assert relative_error(got, network.run(x)[0].numpy()) < 1e-5


def test_onnx_is_one_plain_file_without_metadata_of_its_export(delivery):
    model = onnx.load(delivery[2] / "model.onnx")
    assert not model.metadata_props and not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"conv1.weight", "layer2.0.conv2.weight", "linear.weight"} <= names


def test_batch_norms_go_into_convolutions_unless_the_files_are_to_have_the_same_weights(delivery, tmp_path):
    network, _, folder = delivery
    write_onnx(network, tmp_path / "folded.onnx")
    folded = onnx.load(tmp_path / "folded.onnx")
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    own = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "model.onnx").graph.initializer}
    for name in ("conv1.weight", "layer2.0.conv2.weight", "bn1.running_mean"):
        np.testing.assert_array_equal(own[name], network.tensors[name].numpy())


def test_no_artifact_names_a_folder_of_this_machine(delivery):
    for artifact in delivery[2].iterdir():
        data = artifact.read_bytes()
        for path in (Path(__file__).resolve().parents[2], Path(sys.prefix), Path(torch.__file__).parent, Path.home()):
            assert str(path).encode() not in data, artifact.name


def holds_pickle(data: bytes) -> bool:
    """Whether the bytes are a pickle, or a zip archive with one at any depth."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(holds_pickle(archive.read(name)) for name in archive.namelist())
    try:
        return bool(list(pickletools.genops(data)))
    except (ValueError, IndexError):
        return False


def test_no_artifact_holds_a_pickle(delivery, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "pickled.pt")
    assert holds_pickle((tmp_path / "pickled.pt").read_bytes())
    assert not any(holds_pickle(artifact.read_bytes()) for artifact in delivery[2].iterdir())


def test_network_that_one_onnx_file_cannot_hold_is_refused_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file_module, "_LARGEST_BYTES", 1000)
    with pytest.raises(EngineError, match="1,000") as refused:
        write_onnx(small_network(0), tmp_path / "model.onnx")
    assert refused.value.code == "too_large" and not (tmp_path / "model.onnx").exists()


def test_safetensors_hold_every_tensor_under_its_original_name(delivery):
    network, done, folder = delivery
    loaded = load_file(folder / "model.safetensors")
    assert set(loaded) == set(build("cifar_resnet", ARGS).state_dict())
    for name, tensor in network.tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    assert done.size_bytes == (folder / "model.pwt").stat().st_size


def test_manifest_and_artifact_list_carry_true_digests(delivery):
    _, done, folder = delivery
    entries = json.loads((folder / "manifest.json").read_text())["artifacts"]
    for entry in entries:
        data = (folder / entry["name"]).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert {entry["name"] for entry in entries} == MODEL_FILES | {"report.html", "report.json"}
    assert {entry["name"] for entry in done.artifacts()} == MODEL_FILES


def test_latency_is_measured_for_both_networks(delivery):
    _, done, _ = delivery
    for latency in (done.latency, done.original_latency):
        assert 0 < latency.p50 <= latency.p95 and (latency.batch, latency.threads) == (1, 1)


def test_onnx_that_computes_something_else_is_not_delivered(tmp_path, monkeypatch):
    def sabotaged(export):
        def exported(*arguments, **options):
            model = export(*arguments, **options)
            weight = next(t for t in model.graph.initializer if t.name.endswith("linear.weight"))
            values = onnx.numpy_helper.to_array(weight).copy()
            values[0] *= 1.01
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
            return model

        return exported

    for way in ("emit", "_exported_by_torch"):
        monkeypatch.setattr(onnx_file_module, way, sabotaged(getattr(onnx_file_module, way)))
    with pytest.raises(EngineError, match="differs from PyTorch"):
        write_onnx(small_network(0), tmp_path / "model.onnx")


def test_a_network_that_magnifies_rounding_is_held_against_its_own_rounding(tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    with torch.no_grad():
        # The second output is a difference of large numbers that all but cancel.
        module[3].weight.mul_(1e4)
        module[3].bias.copy_(-module[3](torch.tanh(module[1].bias)))
        module[1].weight.mul_(1e-6)
    network = Network.from_module(module, {"image": (1, 8, 8)})
    inputs = network.random_inputs(batch=2, seed=0)
    assert max(onnx_file_module._rounding_errors(network, inputs)) > 1e-4
    write_onnx(network, tmp_path / "model.onnx")


def test_relative_error_is_infinite_for_wrong_shapes_and_values_that_only_one_side_has():
    ones = np.ones(3, dtype=np.float32)
    assert relative_error(ones, ones) == 0
    assert relative_error(np.ones(2, dtype=np.float32), ones) == float("inf")
    broken = np.array([1, np.nan, 1], dtype=np.float32)
    assert relative_error(broken, ones) == float("inf") and relative_error(ones, broken) == float("inf")
    assert relative_error(broken, broken) == 0 and relative_error(broken * [2, 1, 1], broken) == pytest.approx(0.5**0.5)
    endless = np.array([np.inf, 1], dtype=np.float32)
    assert relative_error(endless, endless) == 0 and relative_error(-endless, endless) == float("inf")


def test_report_refuses_numbers_that_json_cannot_hold(delivery, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        delivery[1].write_report(result(value=float("nan")))


def test_unknown_output_is_refused_by_name(tmp_path):
    with pytest.raises(EngineError, match="coreml"):
        deliver(small_network(0), small_network(0), ("coreml",), tmp_path)
