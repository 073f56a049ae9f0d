"""The masked reference passes correct surgery and catches every kind of sabotage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.analysis import analyse
from core.analysis.handlers import HANDLERS
from core.analysis.handlers.elementwise import elementwise
from core.analysis.values import Value
from core.surgery import apply, verify
from tests.core.channel_networks import CifarResNet, ShuffleAndDense, export, random_keep


@pytest.fixture(scope="module")
def resnet():
    return export(CifarResNet(width=8), 3, 16, 16)


def surgery(network, seed=0):
    analysis = analyse(network)
    keep = random_keep(analysis, np.random.default_rng(seed))
    return analysis, keep, apply(network, analysis, keep)


def with_tensor(network, name, tensor):
    return replace(network, tensors={**network.tensors, name: tensor})


def test_correct_surgery_differs_by_rounding_only(resnet):
    result = verify(resnet, *surgery(resnet))
    assert result.passed
    assert result.max_relative_error < 1e-13
    assert (result.insensitive, result.checked, result.problem) == ((), 15, None)


def test_a_missing_slice_is_caught_and_named(resnet):
    analysis, keep, pruned = surgery(resnet)
    name = "layers.1.conv1.weight"
    result = verify(resnet, analysis, keep, with_tensor(pruned, name, resnet.tensors[name]))
    assert not result.passed
    assert "layers.1.conv1" in result.problem


@pytest.mark.parametrize("name", ["layers.0.conv1.weight", "layers.1.bn1.bias", "layers.2.bn2.running_mean"])
def test_two_swapped_channels_of_one_tensor_are_caught(resnet, name):
    analysis, keep, pruned = surgery(resnet)
    tensor = pruned.tensors[name].clone()
    tensor[[0, 1]] = tensor[[1, 0]]
    result = verify(resnet, analysis, keep, with_tensor(pruned, name, tensor))
    assert not result.passed
    assert result.max_relative_error > 1e-3


def test_swapped_input_channels_are_caught(resnet):
    analysis, keep, pruned = surgery(resnet)
    weight = pruned.tensors["layers.1.conv2.weight"].clone()
    weight[:, [0, 1]] = weight[:, [1, 0]]
    assert not verify(resnet, analysis, keep, with_tensor(pruned, "layers.1.conv2.weight", weight)).passed


def test_a_wrong_kept_index_in_the_middle_of_a_layer_is_caught(resnet):
    """Consistent shapes, one kept channel replaced by a removed one in a single tensor."""
    analysis, keep, pruned = surgery(resnet)
    (outputs,) = [one for one in analysis.slices if (one.tensor, one.axis) == ("layers.1.conv1.weight", 0)]
    removed = int(np.flatnonzero(~keep[outputs.component])[0])
    tensor = pruned.tensors["layers.1.bn1.weight"].clone()
    tensor[0] = resnet.tensors["layers.1.bn1.weight"][removed]
    assert not verify(resnet, analysis, keep, with_tensor(pruned, "layers.1.bn1.weight", tensor)).passed


def test_padding_on_the_wrong_side_is_caught(resnet):
    analysis, keep, pruned = surgery(resnet, seed=3)
    pads = [node for node in pruned.graph.nodes if node.name.startswith("pad")]
    front, back = pads[0].args[1][-2:]
    pads[0].args = (pads[0].args[0], [0, 0, 0, 0, front + 1, back - 1], *pads[0].args[2:])
    result = verify(resnet, analysis, keep, pruned)
    assert back > 0 and not result.passed


def test_an_error_of_one_channel_by_a_part_in_a_million_is_caught(resnet):
    analysis, keep, pruned = surgery(resnet)
    bias = pruned.tensors["layers.1.bn2.bias"].clone()
    bias[0] += 1e-6
    result = verify(resnet, analysis, keep, with_tensor(pruned, "layers.1.bn2.bias", bias))
    assert not result.passed
    assert 1e-9 < result.max_relative_error < 1e-4


class Body(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)
        self._body = body

    def forward(self, x):
        return self.head(F.relu(self.second(self._body(self.stem(x)))).mean((2, 3)))


def passing_along(recorder, call):
    """A wrong rule for anything with statistics over channels: let the labels pass."""
    x = call.tensors[0]
    return Value(x.shape, x.labels)


@pytest.mark.parametrize(
    ("operator", "body"),
    [
        ("softmax", lambda x: torch.softmax(x, 1)),
        ("layer_norm", lambda x: F.layer_norm(x.transpose(1, 3), (8,), None, None).transpose(1, 3)),
        ("cumsum", lambda x: torch.cumsum(x, 1)),
    ],
)
def test_a_label_rule_that_forgets_statistics_over_channels_is_caught(monkeypatch, operator, body):
    monkeypatch.setitem(HANDLERS, operator, passing_along)
    network = export(Body(body), 3, 6, 6)
    analysis, keep, pruned = surgery(network)
    for node in pruned.graph.nodes:
        if node.name == "layer_norm":
            node.args = (node.args[0], [node.meta["value"].shape[-1]], *node.args[2:])
    result = verify(network, analysis, keep, pruned)
    assert not result.passed
    assert result.max_relative_error > 1e-4


def test_a_cat_rule_that_is_off_by_one_is_caught(monkeypatch):
    genuine = HANDLERS["cat"]

    def shifted(recorder, call):
        value = genuine(recorder, call)
        return Value(value.shape, {1: np.roll(value.labels[1], 1)})

    class Cat(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Conv2d(16, 3, 1)

        def forward(self, x):
            x = self.first(x)
            return self.head(torch.cat([x, self.second(x)], 1))

    network = export(Cat(), 3, 6, 6)
    assert verify(network, *surgery(network)).passed
    monkeypatch.setitem(HANDLERS, "cat", shifted)
    assert not verify(network, *surgery(network)).passed


def test_a_missing_tie_is_caught(monkeypatch):
    def first_operand_only(recorder, call):
        x = call.tensors[0]
        return Value(call.shape, x.labels)

    network = export(ShuffleAndDense(), 3, 6, 6)
    residual = export(CifarResNet(width=8), 3, 16, 16)
    monkeypatch.setitem(HANDLERS, "add", first_operand_only)
    analysis, keep, pruned = surgery(residual)
    result = verify(residual, analysis, keep, pruned)
    assert not result.passed
    assert result.problem is not None
    monkeypatch.setitem(HANDLERS, "add", elementwise)
    assert verify(network, *surgery(network)).passed


def zero_gamma_network():
    module = CifarResNet(width=8)
    network = export(module, 3, 16, 16)
    zeros = {name: torch.zeros(8) for name in ("layers.0.bn2.weight", "layers.0.bn2.bias")}
    zeros |= {"layers.1.bn1.weight": torch.zeros(16)}
    return network.with_tensors({**network.tensors, **zeros})


def test_tensors_that_do_not_respond_are_reported_and_checked_on_a_randomised_copy():
    network = zero_gamma_network()
    result = verify(network, *surgery(network))
    assert result.passed
    assert set(result.insensitive) == {"layers.0.bn2", "layers.1.bn1", "layers.1.conv2", "layers.1.bn2"}
    assert result.checked == 15
    assert result.max_relative_error < 1e-12


def test_an_error_behind_a_zero_gain_is_still_caught():
    network = zero_gamma_network()
    analysis, keep, pruned = surgery(network)
    weight = pruned.tensors["layers.1.conv2.weight"].clone()
    weight[:, [0, 1]] = weight[:, [1, 0]]
    # Its input is constant over images, and the swapped channels are what the gain of zero leaves: the bias.
    result = verify(network, analysis, keep, with_tensor(pruned, "layers.1.conv2.weight", weight))
    assert not result.passed


def test_an_error_that_only_a_response_can_show_is_caught():
    """Everything after a zero gain and bias is zero in both networks: equal, and proof of nothing."""
    network = export(CifarResNet(width=8), 3, 16, 16)
    dead = {"layers.1.bn1.weight": torch.zeros(16), "layers.1.bn1.bias": torch.zeros(16)}
    network = network.with_tensors({**network.tensors, **dead})
    analysis, keep, pruned = surgery(network)
    weight = pruned.tensors["layers.1.conv2.weight"].clone()
    weight[:, [0, 1]] = weight[:, [1, 0]]
    result = verify(network, analysis, keep, with_tensor(pruned, "layers.1.conv2.weight", weight))
    assert not result.passed
    assert "layers.1.conv2" in result.insensitive
    assert "layers.1.conv2.weight" in result.problem


def test_removing_only_dead_channels_is_proven_on_the_copy():
    """Trained networks have filters that weight decay has emptied, and they go first: then no output changes."""
    network = export(CifarResNet(width=8), 3, 16, 16)
    tensors = {name: tensor.clone() for name, tensor in network.tensors.items()}
    tensors["layers.0.conv1.weight"][3] = 1e-20
    tensors["layers.0.bn1.weight"][3] = 1e-20
    tensors["layers.0.bn1.bias"][3] = 0.0
    tensors["layers.0.bn1.running_mean"][3] = 0.0
    network = network.with_tensors(tensors)
    analysis = analyse(network)
    (group,) = [group for group in analysis.groups if group.label == "layers.0.conv1"]
    keep = np.ones(analysis.components, dtype=bool)
    keep[group.components[3]] = False
    result = verify(network, analysis, keep, apply(network, analysis, keep))
    assert result.passed
    assert "linear" in result.insensitive
    assert result.checked == 15


def test_removing_only_channels_that_a_relu_silences_is_proven_on_the_copy():
    network = export(CifarResNet(width=8), 3, 16, 16)
    tensors = {name: tensor.clone() for name, tensor in network.tensors.items()}
    tensors["layers.0.bn1.bias"][3] = -100.0
    network = network.with_tensors(tensors)
    analysis = analyse(network)
    (group,) = [group for group in analysis.groups if group.label == "layers.0.conv1"]
    keep = np.ones(analysis.components, dtype=bool)
    keep[group.components[3]] = False
    for seed in range(3):
        result = verify(network, analysis, keep, apply(network, analysis, keep), seed=seed)
        assert result.passed and "linear" in result.insensitive


def test_a_network_whose_output_never_responds_does_not_pass():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.stem(x).mean((2, 3)) * 0.0)

    network = export(Constant(), 3, 4, 4)
    result = verify(network, *surgery(network))
    assert result.max_relative_error < 1e-12
    assert not result.passed
    assert result.insensitive == ("head",)


def test_a_deep_network_whose_signal_drowns_is_proven_on_a_copy_that_responds():
    """Thirty layers that shrink their input: from the tenth on, images differ by less than rounding would show."""

    class Fading(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3 if not index else 8, 8, 3, padding=1) for index in range(30))
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            for layer in self.layers:
                x = torch.sigmoid(layer(x))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    network = export(Fading(), 3, 6, 6)
    analysis, keep, pruned = surgery(network)
    result = verify(network, analysis, keep, pruned)
    assert len(result.insensitive) >= 20 and "head" in result.insensitive
    assert result.passed
    assert (result.unproven, result.checked) == ((), 31)
    # An error that only the last layer shows is no larger than the tolerance on the network as it is.
    weight = pruned.tensors["head.weight"].clone()
    weight[:, [0, 1]] = weight[:, [1, 0]]
    assert not verify(network, analysis, keep, with_tensor(pruned, "head.weight", weight)).passed


def test_a_layer_that_depends_on_nothing_is_named_as_unproven_and_not_counted():
    class ClassToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.query = nn.Linear(8, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            return self.head(self.query(x[:, 0]) * x[:, 1:].mean(1))

    network = export(ClassToken(), 3, 4, 4)
    analysis, keep, pruned = surgery(network, seed=1)
    result = verify(network, analysis, keep, pruned)
    assert result.passed
    assert (result.unproven, result.checked) == (("query",), 3)


def test_types_that_the_graph_names_run_in_double_precision():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.embed = nn.Conv2d(1, 8, 1)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            places = torch.arange(6, dtype=torch.float32, device=x.device).view(1, 1, 1, 6).expand(1, 1, 6, 6)
            y = self.stem(x).float() + self.embed(torch.ones(1, 1, 6, 6).cumsum(2) + places)
            return self.head(y.to(torch.float32).mean((2, 3)))

    network = export(Positions(), 3, 6, 6)
    result = verify(network, *surgery(network))
    assert result.passed and result.max_relative_error < 1e-13


class PerImageFilters(nn.Module):
    """Every image has filters of its own: channels of all images lie along one axis (CondConv)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.route = nn.Linear(8, 4)
        self.experts = nn.Parameter(torch.randn(4, 6 * 8))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        filters = (torch.sigmoid(self.route(x.mean((2, 3)))) @ self.experts).view(n * 6, 8, 1, 1)
        y = F.conv2d(x.reshape(1, n * c, h, w), filters, groups=n).view(n, 6, h, w)
        return self.head(y.mean((2, 3)))


def test_channels_of_all_images_along_one_axis_are_compared_image_by_image():
    torch.manual_seed(0)
    network = export(PerImageFilters(), 3, 6, 6)
    analysis = analyse(network)
    assert {len(group.components) for group in analysis.groups} == {2, 6, 8}
    for seed in range(3):
        keep = random_keep(analysis, np.random.default_rng(seed), fraction=0.7)
        result = verify(network, analysis, keep, apply(network, analysis, keep))
        assert result.passed and result.max_relative_error < 1e-12


class _ExciteNothing(nn.Module):
    """Squeeze-and-excitation behind an instance norm: its means are 0 but for rounding, and no bias hides that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.norm = nn.InstanceNorm2d(10)
        self.squeeze = nn.Conv2d(10, 6, 1, bias=False)
        self.excite = nn.Conv2d(6, 10, 1)
        self.head = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        gate = torch.sigmoid(self.excite(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.head((x * gate).relu())


def test_what_rounding_leaves_of_a_sum_that_cancels_is_no_disagreement():
    network = export(_ExciteNothing(), 3, 8, 8)
    analysis = analyse(network)
    keep = random_keep(analysis, np.random.default_rng(0))
    result = verify(network, analysis, keep, apply(network, analysis, keep))
    assert result.passed, result
    assert "squeeze" in result.insensitive


def test_an_output_that_responds_to_nothing_is_said_to_prove_nothing():
    class Mute(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(3, 10, 3), nn.InstanceNorm2d(10), nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.stem(x)).mean((2, 3)) * 0)

    network = export(Mute(), 3, 8, 8)
    analysis = analyse(network)
    keep = random_keep(analysis, np.random.default_rng(0))
    result = verify(network, analysis, keep, apply(network, analysis, keep))
    assert not result.passed
    assert "the output head responds neither" in result.problem
