"""Registered architectures: the published networks, arguments read from weights, and clear refusals."""

import jsonschema
import pytest
import torch

from core.architectures import architecture_infos, build, fitting_architectures, mismatch, resolve_args
from core.errors import EngineError
from core.network import Network


@pytest.mark.parametrize(
    ("name", "params"),
    # He et al. 2016, table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M.
    [
        ("cifar_resnet20", 269_722),
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("cifar_resnet110", 1_727_962),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, params):
    with torch.device("meta"):
        module = build(name, {})
    assert sum(parameter.numel() for parameter in module.parameters()) == params


def test_resnet20_has_the_keys_of_public_checkpoints():
    keys = set(build("cifar_resnet20", {}).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer3.2.bn2.bias", "linear.weight", "linear.bias"} <= keys
    assert len(keys) == 19 + 19 * 5 + 2
    assert not any("shortcut" in key or "downsample" in key for key in keys)


def test_shortcut_takes_every_second_pixel_and_pads_zeros_on_both_sides():
    block = build("cifar_resnet", {"depth": 8, "width": 6}).layer2[0]
    x = torch.randn(2, 6, 8, 8)
    y = block.shortcut(x)
    assert y.shape == (2, 12, 4, 4)
    assert torch.equal(y[:, 3:9], x[:, :, ::2, ::2])
    assert y[:, :3].abs().sum() == 0 and y[:, 9:].abs().sum() == 0


def test_shortcut_pads_an_odd_number_of_channels_with_the_extra_one_last():
    y = build("cifar_resnet", {"depth": 8, "width": 5}).layer2[0].shortcut(torch.ones(1, 5, 4, 4))
    assert y[0, :, 0, 0].tolist() == [0] * 2 + [1] * 5 + [0] * 3


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (32, 32)])
def test_small_and_odd_images_pass_and_export(size):
    module = build("cifar_resnet", {"depth": 8, "width": 4, "in_channels": 1, "num_classes": 3}).eval()
    x = torch.randn(3, 1, *size)
    network = Network.from_module(module, {"input": (1, *size)})
    assert network.outputs[0].shape == (3,)
    torch.testing.assert_close(network.run(x)[0], module(x).detach())


def test_arguments_are_inferred_from_the_weights():
    args = {"depth": 14, "width": 6, "in_channels": 2, "num_classes": 7}
    state = build("cifar_resnet", args).state_dict()
    assert resolve_args("cifar_resnet", {}, state) == args
    assert not mismatch("cifar_resnet", {}, state)


def test_pruned_inner_widths_are_inferred_and_rebuild_the_same_network():
    args = {"depth": 8, "width": 4, "in_channels": 3, "num_classes": 10, "inner_widths": [3, 5, 16]}
    state = build("cifar_resnet", args).state_dict()
    resolved = resolve_args("cifar_resnet", {}, state)
    assert resolved == args
    assert not mismatch("cifar_resnet", resolved, state)


def test_given_arguments_win_over_inferred_ones():
    state = build("cifar_resnet", {"depth": 8, "width": 4, "inner_widths": [3, 5, 16]}).state_dict()
    assert resolve_args("cifar_resnet", {"num_classes": 99}, state)["num_classes"] == 99
    found = mismatch("cifar_resnet", {"depth": 14}, state)
    assert len(found.missing) == 3 * 10 and found.missing[0] == "layer1.1.conv1.weight"
    assert len(found.different) > 0 and not found.unexpected


def test_weights_are_recognised_by_preset_and_family():
    state = build("cifar_resnet32", {"num_classes": 100}).state_dict()
    assert fitting_architectures(state) == ["cifar_resnet", "cifar_resnet32"]
    assert fitting_architectures({"fc.weight": torch.zeros(2, 2)}) == []


def test_missing_batch_counters_do_not_count_as_mismatch():
    state = build("cifar_resnet20", {}).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    assert not mismatch("cifar_resnet20", {}, old)


def test_integer_weights_where_floats_belong_are_a_mismatch():
    state = build("cifar_resnet", {"depth": 8}).state_dict()
    state["linear.weight"] = state["linear.weight"].to(torch.int8)
    found = mismatch("cifar_resnet", {}, state)
    assert [item.name for item in found.different] == ["linear.weight"]
    assert "int8" in str(found)


def test_unknown_name_lists_the_nearest():
    with pytest.raises(EngineError, match="cifar_resnet20") as caught:
        build("CIFAR_ResNet-20", {})
    assert caught.value.code == "unknown_architecture"
    assert caught.value.param == "/architecture"
    assert "cifar_resnet20" in caught.value.details["nearest"]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("cifar_resnet", {"depth": 21}, "6n \\+ 2"),
        ("cifar_resnet", {"depth": 2}, "from 8 to 1202"),
        ("cifar_resnet", {"width": 0}, "from 1 to 1024"),
        ("cifar_resnet", {"width": True}, "an integer"),
        ("cifar_resnet", {"width": "16"}, "an integer"),
        ("cifar_resnet", {"widht": 16}, "did you mean width"),
        ("cifar_resnet20", {"depth": 20}, "no argument 'depth'"),
        ("cifar_resnet20", {"inner_widths": [4, 0]}, "list of integers"),
        ("cifar_resnet20", {"inner_widths": [4]}, "one entry per block"),
    ],
)
def test_wrong_arguments_are_named(name, args, message):
    with pytest.raises(EngineError, match=message) as caught:
        build(name, args)
    assert caught.value.code == "architecture_mismatch"
    assert caught.value.param.startswith("/architecture_args")


def test_catalogue_has_valid_schemas_whose_defaults_build():
    infos = {info.name: info for info in architecture_infos() if ":" not in info.name}
    own = {*(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)), "cifar_vgg16_bn", "cifar_vgg19_bn"}
    assert set(infos) == {"cifar_resnet", "cifar_resnet18", *own}
    for info in infos.values():
        jsonschema.Draft202012Validator.check_schema(info.args_schema)
        jsonschema.validate(resolve_args(info.name, {}), info.args_schema)
        with torch.device("meta"):
            assert build(info.name, {})(torch.zeros(1, *info.input_shape)).shape == (1, 10)
