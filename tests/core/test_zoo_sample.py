"""A sample of the sweep (`benchmarks.zoo_sweep`): every trap that pruning engines fall into, and more kinds of networks.

Half of the MACs of each network leave: never above the cap, at most 1 % below it, the smaller network runs, agrees with
the masked reference, costs what was predicted and has no layer of one or two channels left. Images are small, so that
the whole sample takes little more than a minute.
"""

import pytest
import torch

from benchmarks.zoo import export, read_names
from benchmarks.zoo_model import measure
from core.analysis import analyse
from core.architectures import get_architecture
from core.budget import Budget, Cap
from core.methods import get_method
from core.planning import plan_widths
from core.surgery import apply, verify


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lands(name, image_size=64, **options):
    row = measure(name, image_size=image_size, delivers=False, **options)
    assert row["status"] == "pruned", row.get("error") or row.get("problem")
    assert row["forward"] and row["verified"] and row["verify_error"] <= 1e-9
    assert row["macs_exact"], (row["before"]["macs"], row["after"]["macs"], row["counted_macs"])
    assert all(cap["value"] <= cap["limit"] for cap in row["constraints"])
    assert row["below"] <= 0.01, row["note"]
    assert row["smallest_width"] > 2 and row["narrow_layers"] == []
    assert row["faults"] == 0
    return row


def test_channel_shuffle():
    lands("torchvision:shufflenet_v2_x0_5")


def test_cross_stage_partial_split_and_concatenation():
    lands("timm:cs3darknet_s")


def test_res2net_pieces_that_are_summed_and_concatenated():
    lands("timm:res2net50_48w_2s")


def test_dual_path_slices_and_concatenations():
    lands("timm:dpn48b")


def test_eca_convolves_over_channels():
    lands("timm:ecaresnet26t")


def test_grouped_convolution_that_becomes_depthwise():
    lands("timm:regnetx_002")
    lands("timm:resnext26ts")


def test_constants_in_views():
    lands("timm:mobilevit_xxs")
    lands("timm:resnest14d")


def test_blur_pool_buffers_expanded_to_every_channel():
    lands("timm:resnetblur18")


def test_global_ranking_that_would_empty_a_layer():
    network = export("torchvision:resnet18", image_size=64)
    tensors = {name: tensor.clone() for name, tensor in network.tensors.items()}
    for block in ("layer2.0", "layer3.1"):  # one strong filter, and all others next to nothing
        tensors[f"{block}.conv1.weight"][1:] *= 1e-6
        tensors[f"{block}.conv2.weight"][:, 1:] *= 1e-6
    network = network.with_tensors(tensors)
    analysis, method = analyse(network), get_method("magnitude")
    config = method.config({})
    constraints = Budget((Cap("macs", max_ratio=0.5),)).constraints(analysis.costs(analysis.full_widths))
    plan = plan_widths(analysis, method.scores(network, analysis, config, 0), constraints, method.plan_options(config))
    widths = {layer.name: layer.after for layer in plan.layers}
    assert (widths["layer2.0.conv1"], widths["layer3.1.conv1"]) == (13, 26)  # a tenth, the floor
    assert min(widths.values()) >= 4 and constraints[0].met_by(plan.predicted)
    pruned = apply(network, analysis, plan.keep)
    assert verify(network, analysis, plan.keep, pruned).passed


def test_batch_norm_applied_to_a_weight():
    row = lands("timm:nf_resnet26")
    assert row["folded"] > 20


def test_zero_padded_shortcuts():
    lands("cifar_resnet20", image_size=32)


def test_shortcut_added_to_a_slice_of_the_channels():
    lands("timm:rexnetr_100")


def test_global_response_normalisation():
    row = lands("timm:convnextv2_atto")
    assert row["level"] == "survivors"


def test_conditionally_parameterised_convolution():
    lands("timm:efficientnet_cc_b0_4e")


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("torchvision:squeezenet1_1", 64),
        ("torchvision:mobilenet_v3_small", 64),
        ("torchvision:mnasnet0_5", 64),
        ("torchvision:googlenet", 64),
        ("torchvision:r3d_18", 32),
        ("torchvision:lraspp_mobilenet_v3_large", 64),
        ("timm:skresnet18", 64),
        ("timm:lcnet_050", 64),
        ("timm:mixnet_s", 64),
        ("timm:ghostnet_050", 64),
        ("timm:repvgg_a0", 64),
        ("timm:convnext_atto", 64),
    ],
)
def test_other_kinds_of_networks(name, image_size):
    lands(name, image_size)


def test_widths_in_multiples_of_eight_land_as_well():
    lands("torchvision:mobilenet_v2", round_to=8)


def test_several_caps_at_once():
    row = lands("torchvision:regnet_x_400mf", budget="macs=0.5+params=0.4+memory.activations=0.7")
    assert [cap["met"] for cap in row["constraints"]] == [True] * 3


def test_what_cannot_be_reached_is_refused_at_once_with_the_reason():
    row = measure("timm:lcnet_050", image_size=64, budget="macs=0.001", delivers=False)
    assert row["status"] == "refused" and row["refused_after_s"] < 5
    assert "is the smallest that is possible" in row["error"]
    assert any("(" in line and ": " in line for line in row["frozen"])  # layer (operator): reason


def test_every_name_of_the_sweep_is_registered():
    names = read_names()
    assert len(names) == len(set(names)) == 142
    assert [get_architecture(name).name for name in names] == names


def test_the_weights_are_drawn_by_seed_and_nothing_constant_is_left():
    first, again, other = (export("timm:convnext_atto", seed=seed, image_size=32) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items())
    for name in first.parameter_names:
        tensor = first.tensors[name]
        assert tensor.numel() == 1 or tensor.std() > 0, name
        assert not torch.equal(tensor, other.tensors[name]), name
    assert first.run(torch.randn(2, 3, 32, 32))[0].std() > 0
