"""A checkpoint and an architecture's name become a network that computes what the original module computes."""

import pytest
import torch

from core.architectures import build
from core.errors import EngineError
from core.intake import load_network, save_safetensors
from core.intake.safetensors_file import PRUNED_MARK

SMALL = {"depth": 8, "width": 4, "in_channels": 1, "num_classes": 5}


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = build("cifar_resnet", SMALL)
    for _ in range(3):
        module(torch.randn(8, 1, 8, 8))
    return module.eval()


@pytest.fixture
def checkpoint(module, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in module.state_dict().items()}}, path)
    return path


def test_network_computes_what_the_module_computes(module, checkpoint):
    network = load_network(checkpoint, architecture="cifar_resnet", input_shape=[1, 8, 8])
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network.run(x)[0], module(x).detach(), rtol=1e-6, atol=1e-6)
    assert network.architecture == "cifar_resnet"
    assert network.architecture_args == SMALL
    assert [(spec.name, spec.shape) for spec in network.inputs] == [("input", (1, 8, 8))]
    assert set(network.tensors) == set(module.state_dict())


def test_default_input_follows_the_weights_channels(checkpoint):
    assert load_network(checkpoint, architecture="cifar_resnet").inputs[0].shape == (1, 32, 32)


def test_a_checkpoint_without_batch_counters_loads(module, tmp_path):
    path = tmp_path / "old.pth"
    state = {name: tensor for name, tensor in module.state_dict().items() if "num_batches" not in name}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    network = load_network(path, architecture="cifar_resnet", input_shape=(1, 8, 8))
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network.run(x)[0], module(x).detach(), rtol=1e-6, atol=1e-6)


def test_a_pruned_inner_width_round_trips(tmp_path):
    pruned = build("cifar_resnet", {**SMALL, "inner_widths": [3, 5, 9]}).eval()
    path = tmp_path / "pruned.safetensors"
    save_safetensors(pruned.state_dict(), path)
    network = load_network(path, architecture="cifar_resnet", input_shape=(1, 8, 8))
    assert network.architecture_args["inner_widths"] == [3, 5, 9]
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network.run(x)[0], pruned(x).detach(), rtol=1e-6, atol=1e-6)


def test_no_architecture_names_those_that_fit(checkpoint):
    with pytest.raises(EngineError, match=r"`architecture` is needed\. These weights fit cifar_resnet") as caught:
        load_network(checkpoint, architecture=None)
    assert caught.value.code == "unknown_architecture" and caught.value.param == "/architecture"
    assert caught.value.details["fitting"] == ["cifar_resnet"]


def test_an_unknown_architecture_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(EngineError, match="Did you mean cifar_resnet20") as caught:
        load_network(tmp_path / "absent", architecture="cifar_resnet_20")
    assert caught.value.code == "unknown_architecture"


def test_another_architecture_lists_ten_and_the_count_of_each_kind(tmp_path):
    path = tmp_path / "model.safetensors"
    state = build("cifar_resnet20", {}).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(16, 8, 3, 3)
    for index in range(12):
        state[f"head.{index}.weight"] = torch.zeros(1)
    del state["linear.bias"]
    save_safetensors(state, path)
    with pytest.raises(EngineError) as caught:
        load_network(path, architecture="cifar_resnet32")
    error = caught.value
    assert error.code == "architecture_mismatch"
    details = error.details
    assert details["missing"]["count"] == 6 * 10 + 1  # two more blocks per stage, and linear.bias
    assert details["unexpected"]["count"] == 12 and len(details["unexpected"]["first"]) == 10
    assert len(details["missing"]["first"]) == 10
    assert details["different"] == {
        "count": 1,
        "first": [{"name": "layer1.0.conv1.weight", "expected": [16, 16, 3, 3], "found": [16, 8, 3, 3]}],
    }
    assert "12 unexpected" in error.message and "and 2 more" in error.message
    assert "layer1.0.conv1.weight (expected [16, 16, 3, 3], found [16, 8, 3, 3])" in error.message


def test_a_mismatch_names_the_architecture_that_fits(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(build("cifar_resnet20", {}).state_dict(), path)
    with pytest.raises(EngineError, match=r"They fit cifar_resnet \(also cifar_resnet20\)") as caught:
        load_network(path, architecture="cifar_resnet32")
    assert caught.value.details["missing"]["count"] == 60


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32), (1, 0, 8), (1, 8, 8, 8), (), (1, -8, 8), (True, 8, 8)])
def test_an_input_shape_that_does_not_fit_says_what_is_expected(checkpoint, shape):
    with pytest.raises(EngineError, match=r"expects 1 channels, \[1, height, width\]") as caught:
        load_network(checkpoint, architecture="cifar_resnet", input_shape=shape)
    assert caught.value.code == "shape_mismatch" and caught.value.param == "/input_shape"
    assert caught.value.details["expected_channels"] == 1


def test_an_input_too_large_to_analyse_is_refused(checkpoint):
    with pytest.raises(EngineError, match="at most") as caught:
        load_network(checkpoint, architecture="cifar_resnet", input_shape=(1, 100_000, 100_000))
    assert caught.value.code == "shape_mismatch"


def test_a_given_argument_that_contradicts_the_weights_is_a_mismatch(checkpoint):
    with pytest.raises(EngineError, match=r"2 different shapes: linear\.weight") as caught:
        load_network(checkpoint, architecture="cifar_resnet", architecture_args={"num_classes": 10})
    assert caught.value.code == "architecture_mismatch"


def test_huge_arguments_are_refused_without_taking_memory(checkpoint):
    with pytest.raises(EngineError) as caught:
        load_network(checkpoint, architecture="cifar_resnet", architecture_args={"depth": 1202, "width": 1024})
    assert caught.value.code == "architecture_mismatch"


def test_other_formats_say_what_is_accepted(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(EngineError, match=r"GGUF.*Accepted.*safetensors") as caught:
        load_network(path, architecture="cifar_resnet20")
    assert caught.value.code == "unsupported_format"


def test_weights_of_a_pruned_network_are_refused_even_where_they_fit(module, tmp_path):
    save_safetensors(module.state_dict(), tmp_path / "model.safetensors", metadata=PRUNED_MARK)
    with pytest.raises(EngineError, match=r"model\.py") as refusal:
        load_network(tmp_path / "model.safetensors", architecture="cifar_resnet")
    assert refusal.value.code == "architecture_mismatch"


@pytest.mark.parametrize("name", ["a\ud800b", "a\x1b[31mb", "a\u202eb", "x" * 300])
def test_a_tensor_name_that_cannot_be_shown_is_refused(module, tmp_path, name):
    torch.save({**module.state_dict(), name: torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(EngineError, match="printable") as refusal:
        load_network(tmp_path / "odd.pt", architecture="cifar_resnet")
    assert refusal.value.code == "invalid_model"
    refusal.value.message.encode("utf-8")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("conv1.weight", 3e38, "not finite"), ("bn1.running_var", -1.0, "bn1.running_var")],
)
def test_a_network_whose_own_outputs_are_not_finite_is_refused(module, tmp_path, name, value, words):
    torch.save({**module.state_dict(), name: torch.full_like(module.state_dict()[name], value)}, tmp_path / "bad.pt")
    with pytest.raises(EngineError, match=words) as refusal:
        load_network(tmp_path / "bad.pt", architecture="cifar_resnet", input_shape=[1, 8, 8])
    assert refusal.value.code == "invalid_model"


def test_an_onnx_file_needs_no_architecture(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0")
    with pytest.raises(EngineError, match="leave `architecture` out") as caught:
        load_network(path, architecture="cifar_resnet20")
    assert (caught.value.code, caught.value.param) == ("architecture_mismatch", "/architecture")
