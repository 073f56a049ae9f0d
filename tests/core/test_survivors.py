"""Statistics over the surviving channels: what they free, that the result agrees with a gathered reference, the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.analysis import Frozen, analyse
from core.analysis.schema import bind
from core.surgery import apply, verify
from tests.core.channel_networks import counted_macs, export, random_keep

CHANNELS = 12


class Body(nn.Module):
    """stem → body → head; `layers` are whatever the body needs parameters for."""

    def __init__(self, body, *layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(CHANNELS, 3)
        self._body = body

    def forward(self, x):
        return self.head(self._body(self.stem(x), *self.layers).mean((2, 3)))


def channels_last(x, norm):
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def eca(x, conv):
    y = x.mean((2, 3)).view(x.shape[0], 1, -1)
    return x * torch.sigmoid(conv(y)).view(x.shape[0], -1, 1, 1)


def grn(x, norm):
    g = x.norm(p=2, dim=(2, 3), keepdim=True)
    return norm(x * (g / (g.mean(1, keepdim=True) + 1e-6))) + x


def spatial_gate(x, conv):
    return x * torch.sigmoid(conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def attention_over_pixels(x):
    """The softmax runs over the pixels, never over the channels: nothing changes its meaning."""
    tokens = x.flatten(2)
    return ((tokens.transpose(1, 2) @ tokens).softmax(-1) @ tokens.transpose(1, 2)).transpose(1, 2).unflatten(2, (6, 6))


def keys_over_channels(x):
    """Channels are the tokens of fused attention."""
    tokens = x.flatten(2)
    y = F.scaled_dot_product_attention(tokens, tokens, tokens)
    return y.unflatten(2, (6, 6))


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, CHANNELS, 1, 1) + 0.5)

    def forward(self, x):
        return x * self.weight


BODIES = {
    "layer norm": (lambda: Body(channels_last, nn.LayerNorm(CHANNELS)), "layer_norm"),
    "layer norm without gain": (lambda: Body(channels_last, nn.LayerNorm(CHANNELS, elementwise_affine=False)), "layer_norm"),
    "rms norm": (lambda: Body(channels_last, nn.RMSNorm(CHANNELS)), "rms_norm"),
    "layer norm over maps": (lambda: Body(lambda x, n: n(x), nn.LayerNorm([CHANNELS, 6, 6])), "layer_norm"),
    "group norm with one group": (lambda: Body(lambda x, n: n(x), nn.GroupNorm(1, CHANNELS)), "group_norm"),
    "softmax": (lambda: Body(lambda x: x.softmax(1) * 5), "softmax"),
    "log softmax": (lambda: Body(lambda x: x.log_softmax(-3)), "log_softmax"),
    "unit length": (lambda: Body(lambda x: F.normalize(x, dim=1)), "linalg_vector_norm"),
    "mean": (lambda: Body(lambda x: x - x.mean(1, keepdim=True)), "mean"),
    "standardised": (lambda: Body(lambda x: (x - x.mean(1, True)) / x.var(1, keepdim=True).add(0.1).sqrt()), "var"),
    "mean of everything": (lambda: Body(lambda x: x * x.mean((1, 2, 3), keepdim=True)), "mean"),
    "mean of a flat map": (lambda: Body(lambda x: x * x.flatten(1).mean(1).view(-1, 1, 1, 1)), "mean"),
    "maximum": (lambda: Body(lambda x: x - x.max(1, keepdim=True)[0]), "max"),
    "sum divided by a number": (lambda: Body(lambda x: x - x.sum(1, keepdim=True) / CHANNELS), "sum"),
    "channel attention": (lambda: Body(eca, nn.Conv1d(1, 1, 3, padding=1, bias=False)), "conv1d"),
    "response normalisation": (lambda: Body(grn, Affine()), "mean"),
    "spatial gate": (lambda: Body(spatial_gate, nn.Conv2d(2, 1, 3, padding=1)), "amax"),
    "tokens are channels": (lambda: Body(keys_over_channels), "scaled_dot_product_attention"),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {name: export(build(), 3, 6, 6) for name, (build, _) in BODIES.items()}


def stem_channels(analysis):
    prunable = {component for group in analysis.groups for component in group.components.tolist()}
    (stem,) = [one for one in analysis.slices if (one.tensor, one.axis) == ("stem.weight", 0)]
    return prunable & set(stem.component.tolist())


@pytest.mark.parametrize("name", BODIES)
def test_what_strict_analysis_freezes_is_free_and_agrees_with_the_gathered_reference(networks, name):
    network, operator = networks[name], BODIES[name][1]
    strict = analyse(network)
    assert not stem_channels(strict)
    assert operator in {one.operator for one in strict.frozen}
    analysis = analyse(network, survivors=True)
    assert analysis.faults == strict.faults == ()
    assert len(stem_channels(analysis)) == CHANNELS
    for seed in range(3):
        keep = random_keep(analysis, np.random.default_rng(seed))
        pruned = apply(network, analysis, keep)
        assert pruned.tensors["stem.weight"].shape[0] < CHANNELS
        result = verify(network, analysis, keep, pruned, seed=seed)
        assert result.passed and result.unproven == (), result
        assert result.max_relative_error < 1e-12
        assert counted_macs(pruned) == analysis.costs(analysis.widths(keep)).macs
        assert operator in {one.operator for one in analysis.changed(keep)}


@pytest.mark.parametrize("name", BODIES)
def test_a_reference_over_all_channels_would_disagree(networks, name):
    """The check is not blind to the change of meaning: only a reference that knows of it agrees."""
    network = networks[name]
    analysis = analyse(network, survivors=True)
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    unaware = replace(analysis, trace=replace(analysis.trace, subsets={}))
    assert not verify(network, unaware, keep, pruned).passed


def test_few_large_groups_lose_the_same_positions_instead_of_going_as_a_whole():
    network = export(Body(lambda x, n: n(x), nn.GroupNorm(2, CHANNELS)), 3, 6, 6)
    assert len(stem_channels(analyse(network))) == 2
    analysis = analyse(network, survivors=True)
    assert len(stem_channels(analysis)) == CHANNELS // 2
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    assert bind(next(node for node in pruned.graph.nodes if node.name == "group_norm"))["num_groups"] == 2
    assert verify(network, analysis, keep, pruned).passed
    assert [one.operator for one in analysis.changed(keep)] == ["group_norm"]


def test_the_layers_whose_meaning_changes_are_named_only_if_they_lose_channels(networks):
    analysis = analyse(networks["layer norm"], survivors=True)
    keep = np.ones(analysis.components, dtype=bool)
    assert analysis.changed(keep) == ()
    keep[min(stem_channels(analysis))] = False
    assert analysis.changed(keep) == (Frozen("layers.0", "layer_norm", "takes statistics over this axis"),)


def test_the_normalised_shape_follows_the_channels(networks):
    network = networks["layer norm over maps"]
    analysis = analyse(network, survivors=True)
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    (norm,) = [node for node in pruned.graph.nodes if node.name == "layer_norm"]
    assert bind(norm)["normalized_shape"] == [pruned.tensors["stem.weight"].shape[0], 6, 6]


def test_attention_over_pixels_needs_no_survivors():
    network = export(Body(attention_over_pixels), 3, 6, 6)
    strict, loose = analyse(network), analyse(network, survivors=True)
    assert len(stem_channels(strict)) == len(stem_channels(loose)) == CHANNELS
    assert loose.changed(random_keep(loose, np.random.default_rng(0))) == ()


@pytest.mark.parametrize(
    ("operator", "body"),
    [
        ("argmax", lambda x: x * x.argmax(1, keepdim=True)),
        ("max", lambda x: x * x.max(1, keepdim=True)[1]),
        ("cumsum", lambda x: x.cumsum(1)),
        ("median", lambda x: x - x.median(1, keepdim=True)[0]),
    ],
)
def test_positions_and_orders_of_channels_stay_frozen(operator, body):
    analysis = analyse(export(Body(body), 3, 6, 6), survivors=True)
    assert not stem_channels(analysis)
    assert operator in {one.operator for one in analysis.frozen}
