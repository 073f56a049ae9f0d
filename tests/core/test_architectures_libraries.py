"""torchvision's and timm's networks: by name, from their state_dicts, and told by their weights alone."""

import re
import subprocess
import sys
import time

import jsonschema
import pytest
import torch

from core.architectures import (
    architecture_infos,
    build,
    fitting_architectures,
    get_architecture,
    nearest_names,
    resolve_args,
)
from core.architectures.family import without_values
from core.architectures.library import read_index
from core.errors import EngineError
from core.intake import load_network, save_safetensors

# Name and image size: every kind of operator and of keys, at a size that keeps the test short.
SAMPLE = (
    ("torchvision:squeezenet1_1", 64),
    ("torchvision:shufflenet_v2_x0_5", 64),
    ("torchvision:mnasnet0_5", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("torchvision:regnet_x_400mf", 64),
    ("torchvision:r3d_18", 32),
    ("torchvision:mobilenet_v2", 64),
    ("timm:resnet18", 64),
    ("timm:seresnet18", 64),
    ("timm:ecaresnet26t", 64),
    ("timm:resnet10t", 64),
    ("timm:resnetblur18", 64),
    ("timm:skresnet18", 64),
    ("timm:nf_regnet_b0", 64),
    ("timm:ghostnet_050", 64),
    ("timm:lcnet_050", 64),
    ("timm:tf_efficientnet_lite0", 64),
    ("timm:mixnet_s", 64),
    ("timm:convnext_atto", 64),
    ("timm:convnextv2_atto", 64),
    ("timm:vit_tiny_patch16_224", 64),
    ("timm:mobilevit_xxs", 64),
)


def saved(module, folder):
    path = folder / "model.safetensors"
    save_safetensors(module.state_dict(), path)
    return path


def built(name, **args):
    torch.manual_seed(0)
    module = build(name, args).eval()
    for statistics in module.modules():
        if getattr(statistics, "running_var", None) is not None:
            statistics.running_mean.normal_(0, 0.1)
            statistics.running_var.uniform_(0.5, 1.5)
    return module


def sized(name, size):
    argument = get_architecture(name).size_argument
    if argument is None:
        return {}
    whole = get_architecture(name).args_schema["properties"][argument]["type"] == "integer"
    return {argument: size if whole else [size, size]}


@pytest.mark.parametrize(("name", "size"), SAMPLE)
def test_a_state_dict_of_the_library_loads_by_name_and_computes_the_same(name, size, tmp_path):
    module = built(name, **sized(name, size))
    default = get_architecture(name).input_shape({})
    shape = (*default[:-2], size, size)
    network = load_network(saved(module, tmp_path), architecture=name, input_shape=shape)
    inputs = torch.randn(3, *shape)
    with torch.no_grad():
        expected = module(inputs)
    expected = expected["out"] if isinstance(expected, dict) else expected
    (output,) = network.run(inputs)
    torch.testing.assert_close(output, expected)
    assert network.architecture == name
    assert set(network.tensors) >= set(module.state_dict())


def test_arguments_are_inferred_from_the_weights():
    module = built("timm:resnet18", num_classes=7, in_chans=1)
    state = module.state_dict()
    assert resolve_args("timm:resnet18", {}, state) == {"num_classes": 7, "in_chans": 1}
    assert get_architecture("timm:resnet18").input_shape({"in_chans": 1}) == (1, 224, 224)
    headless = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    assert resolve_args("timm:resnet18", {}, headless)["num_classes"] == 0
    assert resolve_args("torchvision:resnet18", {}, state)["num_classes"] == 7


def test_default_input_shapes_are_the_libraries_own():
    shapes = {info.name: info.input_shape for info in architecture_infos()}
    assert shapes["torchvision:inception_v3"] == (3, 299, 299)
    assert shapes["torchvision:resnet50"] == (3, 224, 224)
    assert shapes["torchvision:r3d_18"] == (3, 16, 112, 112)
    assert shapes["timm:inception_v3"] == (3, 299, 299)
    assert shapes["timm:efficientnet_b1"] == (3, 240, 240)


@pytest.mark.parametrize(
    ("name", "heads", "present"),
    [("googlenet", ("aux1", "aux2"), True), ("googlenet", (), False), ("inception_v3", ("AuxLogits",), True)],
)
def test_auxiliary_heads_may_be_there_and_are_not_delivered(name, heads, present, tmp_path):
    module = built(f"torchvision:{name}", aux_logits=present)
    network = load_network(saved(module, tmp_path), architecture=f"torchvision:{name}", input_shape=(3, 96, 96))
    assert network.architecture_args["aux_logits"] is present
    assert not any(key.startswith(heads) for key in network.tensors)
    inputs = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.run(inputs)[0], module(inputs))


def test_transform_input_is_part_of_the_function(tmp_path):
    module = built("torchvision:googlenet", transform_input=True)
    path = saved(module, tmp_path)
    args = {"transform_input": True}
    network = load_network(path, architecture="torchvision:googlenet", architecture_args=args, input_shape=(3, 64, 64))
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.run(inputs)[0], module(inputs))


def test_segmentation_gives_its_map_and_not_the_auxiliary_one(tmp_path):
    name = "torchvision:deeplabv3_mobilenet_v3_large"
    module = built(name, aux_loss=True)
    network = load_network(saved(module, tmp_path), architecture=name, input_shape=(3, 64, 64))
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.run(inputs)[0], module(inputs)["out"])
    assert [spec.shape for spec in network.outputs] == [(21, 64, 64)]


def test_keys_of_2017_are_read():
    name = "torchvision:densenet121"
    with without_values():
        module = build(name, {})
    state = module.state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): state[key] for key in state}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old and len(old) == len(state)
    assert list(get_architecture(name).renamed(module, old)) == list(state)


def test_keys_of_the_first_vision_transformers_are_read():
    name = "torchvision:vit_b_32"
    with without_values():
        module = build(name, {})
    state = module.state_dict()
    old = {key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): state[key] for key in state}
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in old
    assert list(get_architecture(name).renamed(module, old)) == list(state)


def test_keys_of_the_original_authors_are_read_by_timms_own_filters(tmp_path):
    module = built("timm:convnext_atto")
    names = {"stem.": "downsample_layers.0.", "head.norm.": "norm.", "head.fc.": "head."}
    state = {}
    for key, tensor in module.state_dict().items():
        for today, original in names.items():
            key = key.replace(today, original) if key.startswith(today) else key
        state[key.replace(".conv_dw.", ".dwconv.").replace(".mlp.fc", ".pwconv").replace(".blocks.", ".")] = tensor
    path = tmp_path / "convnext.safetensors"
    save_safetensors({_stage(key): tensor for key, tensor in state.items()}, path)
    network = load_network(path, architecture="timm:convnext_atto", input_shape=(3, 64, 64))
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.run(inputs)[0], module(inputs))


def _stage(key):
    """`stages.1.downsample.0` was `downsample_layers.1.0`."""
    parts = key.split(".")
    return ".".join(["downsample_layers", parts[1], *parts[3:]]) if "downsample" in parts else key


def test_weights_without_a_name_are_told_in_little_computing(tmp_path):
    path = saved(built("torchvision:resnet18", num_classes=5), tmp_path)
    fitting_architectures({})  # reading the index once is the process's start, not the request's
    started = time.thread_time()  # what other work on the machine takes is not the request's
    with pytest.raises(EngineError, match=r"These weights fit torchvision:resnet18 \(also timm:resnet18, ") as caught:
        load_network(path, architecture=None)
    assert time.thread_time() - started < 2
    assert caught.value.details["fitting"] == ["torchvision:resnet18", "timm:resnet18", "timm:resnetblur18"]


@pytest.mark.parametrize(
    ("name", "also"), [("timm:mobilenetv3_small_050", 1), ("torchvision:vgg11_bn", 1), ("timm:convnext_pico", 1)]
)
def test_fitting_names_include_the_own_one_and_nothing_of_another_shape(name, also):
    with without_values():
        state = build(name, {}).state_dict()
    found = fitting_architectures(state)
    assert name in found
    for other in found:
        with without_values():
            twin = build(other, {}, state).state_dict()
        assert {key: tensor.shape for key, tensor in twin.items()} == {
            key: tensor.shape for key, tensor in state.items()
        }
    widened = {key: torch.empty((*tensor.shape, 2), device="meta") for key, tensor in state.items()}
    assert fitting_architectures(widened) == []


def test_names_and_fits_are_told_without_importing_the_libraries():
    script = (
        "import sys, core.architectures as a; a.architecture_infos(); a.nearest_names('resnet50'); "
        "a.fitting_architectures({}); assert not {'timm', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("written", "first"),
    [
        ("resnet50", {"torchvision:resnet50", "timm:resnet50"}),
        ("timm:resnet50.a1_in1k", {"timm:resnet50"}),
        ("timm/convnext_tiny.fb_in1k", {"timm:convnext_tiny"}),
        ("torchvision:resnet5O", {"torchvision:resnet50"}),
        ("ResNet-18", {"torchvision:resnet18", "timm:resnet18"}),
        ("timm:efficientnetb0", {"timm:efficientnet_b0"}),
        ("cifar_resnet-20", {"cifar_resnet20"}),
    ],
)
def test_a_miss_names_the_nearest_of_all_families(written, first):
    started = time.thread_time()
    assert set(nearest_names(written)[: len(first)]) == first
    assert time.thread_time() - started < 0.5
    with pytest.raises(EngineError, match=next(iter(first))) as caught:
        build(written, {})
    assert caught.value.code == "unknown_architecture"


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("argument", ["pretrained", "weights", "pretrained_cfg", "checkpoint_path", "url", "progress"])
def test_no_argument_can_make_a_library_fetch_or_read_anything(name, argument):
    with pytest.raises(EngineError, match=f"has no argument '{argument}'") as caught:
        build(name, {argument: True})
    assert caught.value.param == f"/architecture_args/{argument}"


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("timm:resnet18", {"output_stride": 12}, "one of 8, 16, 32"),
        ("timm:resnet18", {"drop_rate": 2}, "a number from 0.0 to 0.99"),
        ("timm:resnet18", {"global_pool": "rm -rf"}, "one of "),
        ("timm:vit_tiny_patch16_224", {"img_size": [224]}, "a list of 2 integers"),
        ("torchvision:googlenet", {"transform_input": 1}, "true or false"),
        ("torchvision:resnet50", {"replace_stride_with_dilation": [True]}, "a list of 3 booleans"),
        ("torchvision:resnet18", {"replace_stride_with_dilation": [False, False, True]}, "Dilation > 1 not supported"),
    ],
)
def test_wrong_arguments_are_named(name, args, words):
    with pytest.raises(EngineError, match=words) as caught:
        build(name, args)
    assert caught.value.code == "architecture_mismatch"


def test_an_input_shape_that_does_not_suit_says_what_is_expected(tmp_path):
    path = saved(built("torchvision:r3d_18"), tmp_path)
    with pytest.raises(EngineError, match=r"\[3, frames, height, width\].*e\.g\. \[3, 16, 112, 112\]"):
        load_network(path, architecture="torchvision:r3d_18", input_shape=(3, 112, 112))
    with without_values(), pytest.raises(EngineError, match="Input shape indivisible by patch size"):
        build("torchvision:vit_b_32", {"image_size": 100})


def test_the_catalogue_of_every_family_has_valid_schemas():
    infos = architecture_infos()
    assert len(infos) > 1200
    for schema in {repr(info.args_schema): info.args_schema for info in infos}.values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["additionalProperties"] is False
    assert all(len(info.title) <= 120 for info in infos)


def test_the_indexes_are_those_of_the_libraries_that_the_tests_run_with():
    import timm
    import torchvision

    assert read_index("timm").keys() <= set(timm.list_models())
    assert len(timm.list_models()) - len(read_index("timm")) < 40
    assert read_index("torchvision").keys() <= set(torchvision.models.list_models())
