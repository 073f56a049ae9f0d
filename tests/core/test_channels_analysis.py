"""Which channels are coupled, which are frozen and why, and how label vectors pass through operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.analysis import Frozen, analyse
from core.analysis.context import Recorder
from core.analysis.handlers.reshape import blocks, rearranged
from core.analysis.values import Value
from core.surgery import apply, verify
from tests.core.channel_networks import (
    CifarResNet,
    InvertedResidual,
    ShuffleAndDense,
    Vgg,
    export,
    random_keep,
)


class Simple(nn.Module):
    """stem → body(x) → head over pooled channels; the part under test is a function."""

    def __init__(self, body, channels: int = 8, out: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.head = nn.Linear(out, 3)
        self._body = body

    def forward(self, x):
        return self.head(self._body(self.stem(x)).mean((2, 3)))


def analyse_body(body, channels=8, out=8):
    network = export(Simple(body, channels, out), 3, 6, 6)
    analysis = analyse(network)
    assert analysis.faults == ()
    return network, analysis


def check_random_surgery(network, analysis, seeds=2):
    for seed in range(seeds):
        keep = random_keep(analysis, np.random.default_rng(seed))
        result = verify(network, analysis, keep, apply(network, analysis, keep))
        assert result.passed, result
        assert result.max_relative_error < 1e-12
    return result


def test_residual_stages_share_channels_and_zero_padding_widens_them():
    analysis = analyse(export(CifarResNet(blocks=2), 3, 16, 16))
    assert [(group.label, len(group.components)) for group in analysis.groups] == [
        ("conv1", 16),
        ("layers.0.conv1", 16),
        ("layers.1.conv1", 16),
        ("layers.2.conv1", 32),
        ("layers.2.conv2", 16),
        ("layers.3.conv1", 32),
        ("layers.4.conv1", 64),
        ("layers.4.conv2", 32),
        ("layers.5.conv1", 64),
    ]
    widths = {layer.name: layer for layer in analysis.layers}
    # Stage 3 = the 16 channels of stage 1, the 16 added for stage 2 and the 32 added for itself.
    assert widths["layers.4.conv2"].terms == ((0, 1), (4, 1), (7, 1))
    assert widths["layers.4.conv2"].width == 64
    assert (widths["linear"].fixed, widths["linear"].terms) == (10, ())


def test_the_classifier_is_frozen_with_its_reason():
    analysis = analyse(export(Vgg(), 3, 12, 12))
    reason = "the width of a network output is part of its contract"
    assert analysis.frozen == (Frozen("classifier.3", "output", reason),)


def test_flatten_repeats_labels_without_tying_channels():
    analysis = analyse(export(Vgg(), 3, 12, 12))
    (slices,) = [one for one in analysis.slices if (one.tensor, one.axis) == ("classifier.0.weight", 1)]
    (outputs,) = [one for one in analysis.slices if (one.tensor, one.axis) == ("features.4.weight", 0)]
    assert (slices.component == outputs.component.repeat(9)).all()
    assert len(set(outputs.component.tolist())) == 12


def test_slices_of_one_component_lie_in_every_tensor_of_its_layer():
    analysis = analyse(export(InvertedResidual(), 3, 16, 16))
    (expand,) = [group for group in analysis.groups if group.label == "expand"]
    component = expand.components[5]
    found = {(one.tensor, one.axis): np.flatnonzero(one.component == component).tolist() for one in analysis.slices}
    assert {key for key, positions in found.items() if positions == [5]} == {
        ("expand.weight", 0),
        ("norm.weight", 0),
        ("norm.bias", 0),
        ("norm.running_mean", 0),
        ("norm.running_var", 0),
        ("depthwise.weight", 0),
        ("depthwise.bias", 0),
        ("squeeze.weight", 1),
        ("excite.weight", 0),
        ("excite.bias", 0),
        ("project.weight", 1),
    }


@pytest.mark.parametrize("build", [CifarResNet, Vgg, InvertedResidual, ShuffleAndDense])
def test_no_label_rule_raises(build):
    shape = {Vgg: (3, 12, 12), ShuffleAndDense: (3, 6, 6)}.get(build, (3, 16, 16))
    assert analyse(export(build(), *shape)).faults == ()


def test_an_operator_without_a_rule_freezes_what_it_touches_and_nothing_else():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.free = nn.Conv2d(4, 6, 1)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.free(self.stem(x).sort(1)[0]).mean((2, 3)))

    network = export(Sorted(), 3, 6, 6)
    analysis = analyse(network)
    assert analysis.faults == ()
    assert ("stem", 4) not in [(group.label, len(group.components)) for group in analysis.groups]
    assert [(group.label, len(group.components)) for group in analysis.groups] == [("free", 6)]
    assert any(one.operator == "sort" and "no label rule" in one.reason for one in analysis.frozen)
    check_random_surgery(network, analysis)


def test_a_labelled_operand_that_meets_an_unlabelled_one_is_frozen():
    network, analysis = analyse_body(lambda x: x + torch.cumsum(torch.ones(8), 0).view(1, 8, 1, 1))
    assert len(analysis.groups) in (0, 1)
    check_random_surgery(network, analysis)


BODIES = {
    "softmax over channels": (lambda x: torch.softmax(x, 1), 0),
    "mean over channels": (lambda x: x * x.mean(1, keepdim=True), 0),
    "sum over pixels": (lambda x: x.sum((2, 3), keepdim=True), 8),
    "select of a channel": (lambda x: x * x[:, 3:4], 7),
    "numbered channel": (lambda x: x * x.select(1, 3).unsqueeze(1), 0),
    "strided slice of channels": (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), 4),
    "channel halves swapped": (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), 8),
    "unequal split": (lambda x: torch.cat(torch.split(x, [3, 5], 1)[::-1], 1), 8),
    "stack": (lambda x: torch.stack([x, F.relu(x)]).sum(0), 8),
    "repeated by expand": (lambda x: x + x.mean((1, 2, 3), keepdim=True).expand(-1, 8, -1, -1), 0),
    "radix split": (lambda x: x.view(-1, 2, 4, 6, 6).sum(1), 4),
    "squeeze and back": (lambda x: x * x.mean((2, 3), keepdim=True).squeeze().unsqueeze(-1).unsqueeze(-1), 8),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (6, 6)), 8),
    "layer norm over pixels": (lambda x: F.relu(F.layer_norm(x, (6, 6))), 8),
    "layer norm over channels": (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2), 0),
    "flip of pixels": (lambda x: x + x.flip(3), 8),
    "in-place on a view": (lambda x: _add_to_half(x), 8),
    "pixel unshuffle and shuffle": (lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), 8),
    "attention between pixels": (lambda x: _pixel_attention(x), 8),
    "masked": (lambda x: torch.where(x > 0, x, x * 0.1).clamp(-2, 2), 8),
}


def _add_to_half(x):
    x = x.clone()
    x[:, :4] += 1.0
    return x * 2


def _pixel_attention(x):
    tokens = x.flatten(2)
    return (tokens @ (tokens.transpose(1, 2) @ tokens)).unflatten(2, (6, 6))


@pytest.mark.parametrize("name", BODIES)
def test_a_body_leaves_the_expected_channels_free_and_its_surgery_is_exact(name):
    body, free = BODIES[name]
    out = 4 if name == "radix split" else 8
    network, analysis = analyse_body(body, out=out)
    stem = next(one for one in analysis.slices if (one.tensor, one.axis) == ("stem.weight", 0)).component
    prunable = {component for group in analysis.groups for component in group.components.tolist()}
    assert len(prunable & set(stem.tolist())) == free
    check_random_surgery(network, analysis)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1, 12, 8, 8), (1, 3, 4, 8, 8), [([0], [0]), ([1], [1, 2]), ([2], [3]), ([3], [4])]),
        ((1, 64, 1, 1), (1, 64), [([0], [0]), ([1], [1]), ([2], []), ([3], [])]),
        ((64,), (1, 64, 1), [([0], [0, 1, 2])]),
        ((1, 4, 3, 5), (12, 5), [([0, 1, 2], [0]), ([3], [1])]),
        ((), (1,), [([], [0])]),
    ],
)
def test_views_are_taken_apart_into_the_finest_blocks(before, after, expected):
    assert blocks(before, after) == expected


def test_a_view_that_splits_channels_keeps_the_longest_axis_free():
    recorder = Recorder()
    labels = recorder.fresh(12)
    result = rearranged(recorder, Value((1, 12), {1: labels}), (1, 3, 4))
    assert list(result.labels) == [2]
    roots = recorder.canonical(labels).reshape(3, 4)
    assert (roots == roots[0]).all()
    assert len(set(roots[0].tolist())) == 4


def test_a_flattened_axis_is_split_again_without_ties():
    recorder = Recorder()
    value = Value((1, 5, 4, 4), {1: recorder.fresh(5)})
    back = rearranged(recorder, rearranged(recorder, value, (1, 80)), (1, 5, 16))
    assert recorder.ties == []
    assert (back.labels[1] == value.labels[1]).all()


def test_grouped_convolutions_remove_positions_or_groups():
    def body(groups, channels):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)

        class Grouped(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, channels, 1)
                self.grouped = convolution
                self.head = nn.Linear(channels, 2)

            def forward(self, x):
                return self.head(self.grouped(self.stem(x)).mean((2, 3)))

        network = export(Grouped(), 3, 6, 6)
        return network, analyse(network)

    network, positions = body(2, 16)
    assert sorted(len(group.components) for group in positions.groups) == [8, 8]
    check_random_surgery(network, positions)
    network, groups = body(8, 16)
    assert [len(group.components) for group in groups.groups] == [8]
    keep = np.ones(groups.components, dtype=bool)
    keep[groups.groups[0].components[[1, 4, 6]]] = False
    pruned = apply(network, groups, keep)
    (grouped,) = [node for node in pruned.graph.nodes if node.name == "conv2d_1"]
    assert grouped.args[-1] == 5
    assert tuple(pruned.tensors["grouped.weight"].shape) == (10, 2, 3, 3)
    assert verify(network, groups, keep, pruned).passed


def test_transposed_convolution_swaps_its_weight_axes():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head(F.relu(self.up(self.stem(x))))

    network = export(Up(), 3, 4, 4)
    analysis = analyse(network)
    assert [(group.label, len(group.components)) for group in analysis.groups] == [("stem", 8), ("up", 6)]
    check_random_surgery(network, analysis)
