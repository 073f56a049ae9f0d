"""CIFAR ResNet-18 and VGG with batch-norm: published sizes, the keys of public checkpoints, arguments from weights."""

from __future__ import annotations

import pytest
import torch

from core.architectures import build, fitting_architectures, resolve_args


def conv_weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 4)


@pytest.mark.parametrize(
    ("name", "convolutions", "params"),
    [
        ("cifar_resnet18", 11_159_232, 11_173_962),
        ("cifar_vgg16_bn", 14_710_464, 14_728_266),
        ("cifar_vgg19_bn", 20_018_880, 20_040_522),
    ],
)
def test_networks_have_the_published_number_of_weights(name, convolutions, params):
    with torch.device("meta"):
        module = build(name, {})
    assert conv_weights(module) == convolutions
    assert sum(parameter.numel() for parameter in module.parameters()) == params


def test_keys_are_those_of_public_checkpoints():
    with torch.device("meta"):
        resnet = set(build("cifar_resnet18", {}).state_dict())
        vgg = set(build("cifar_vgg16_bn", {}).state_dict())
        classifiers = {kind: build("cifar_vgg16_bn", {"classifier": kind}).classifier for kind in ("mlp", "dropout")}
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.running_mean", "linear.weight"} <= resnet
    assert not any(key.startswith("layer1.0.shortcut") for key in resnet)
    assert {"features.0.weight", "features.41.running_var", "features.40.bias", "classifier.weight"} <= vgg
    assert {key for key in classifiers["mlp"].state_dict() if "weight" in key} == {"0.weight", "3.weight", "6.weight"}
    found = {key for key in classifiers["dropout"].state_dict() if "weight" in key}
    assert found == {"1.weight", "4.weight", "6.weight"}
    assert sum(p.numel() for p in classifiers["mlp"].parameters() if p.ndim == 2) == 529_408


VGG16 = [3, 4, 5, 6, 7, 8, 9, 5, 4, 3, 2, 6, 4]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cifar_resnet18", {"in_channels": 1, "num_classes": 7, "widths": [3, 4, 5, 6]}),
        (
            "cifar_resnet18",
            {"in_channels": 3, "num_classes": 5, "widths": [4, 4, 5, 6], "inner_widths": [1, 2, 3, 4, 5, 6, 7, 8]},
        ),
        (
            "cifar_vgg16_bn",
            {"in_channels": 1, "num_classes": 3, "widths": VGG16, "classifier": "linear", "bias": False},
        ),
        ("cifar_vgg16_bn", {"widths": VGG16, "classifier": "mlp", "hidden_widths": [5, 6], "num_classes": 100}),
        ("cifar_vgg19_bn", {"widths": [*VGG16, 2, 3, 4], "classifier": "dropout", "hidden_widths": [4, 3]}),
    ],
)
def test_arguments_are_inferred_from_the_weights_and_rebuild_the_network(name, args):
    module = build(name, args).eval()
    state = module.state_dict()
    assert {key: value for key, value in resolve_args(name, {}, state).items() if key in args} == args
    assert fitting_architectures(state) == [name]
    again = build(name, resolve_args(name, {}, state)).eval()
    again.load_state_dict(state)
    x = torch.randn(2, args.get("in_channels", 3), 32, 32)
    torch.testing.assert_close(again(x), module(x))
