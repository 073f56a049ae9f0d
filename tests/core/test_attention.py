"""Attention: what is contracted is tied, heads go where the channels inside them cannot, and costs stay exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.analysis import analyse
from core.analysis.schema import bind
from core.surgery import apply, verify
from tests.core.attention_networks import DIM, INNER, NETWORKS
from tests.core.channel_networks import counted_macs, export, random_keep

# Free components that the projections to queries, keys and values make: channels inside heads, or whole heads.
STRICT = {
    "dot product": [6],
    "fused": [6],
    "fused with a scale": [6],
    "causal": [6],
    # Contracted by einsum: at least one channel of each half stays.
    "einsum": [3, 3],
    "cosine": [4],
    "cosine with three heads": [3],
    "across channels": [4],
    "linear": [6],
    "more heads than channels": [8],
    "separate projections": [6, 10],
    "pixels": [8, 10],
}
SURVIVORS = {**STRICT, "cosine": [6], "cosine with three heads": [6], "across channels": [6]}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {name: export(build(), 3, 6, 6) for name, build in NETWORKS.items()}


def free_parts(analysis):
    """Sizes of the groups that slice a projection, per projection."""
    found = {}
    for one in analysis.slices:
        if one.axis == 0 and one.tensor.split(".")[0] in ("qkv", "query", "value", "theta", "g"):
            found |= {
                group.index: len(group.components)
                for group in analysis.groups
                if set(group.components) & set(one.component)
            }
    return sorted(found.values())


@pytest.mark.parametrize(("survivors", "expected"), [(False, STRICT), (True, SURVIVORS)], ids=["strict", "survivors"])
@pytest.mark.parametrize("name", NETWORKS)
def test_heads_or_the_channels_inside_them_are_free_and_their_removal_is_exact(networks, name, survivors, expected):
    network = networks[name]
    analysis = analyse(network, survivors=survivors)
    assert analysis.faults == ()
    assert free_parts(analysis) == expected[name]
    assert counted_macs(network) == analysis.costs(analysis.full_widths).macs
    for seed in range(3):
        keep = random_keep(analysis, np.random.default_rng(seed))
        pruned = apply(network, analysis, keep)
        result = verify(network, analysis, keep, pruned, seed=seed)
        assert result.passed and result.unproven == (), result
        assert result.max_relative_error < 1e-12
        assert counted_macs(pruned) == analysis.costs(analysis.widths(keep)).macs


def test_the_scale_of_fused_attention_stays_the_one_of_the_full_heads(networks):
    network = networks["fused"]
    analysis = analyse(network)
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    (before,) = [node for node in network.graph.nodes if node.name.startswith("scaled_dot_product")]
    (after,) = [node for node in pruned.graph.nodes if node.name == before.name]
    assert bind(before)["scale"] is None
    assert bind(after)["scale"] == pytest.approx(INNER**-0.5)
    assert pruned.tensors["qkv.weight"].shape[0] < network.tensors["qkv.weight"].shape[0]


def test_a_lost_scale_is_caught(networks):
    network = networks["fused"]
    analysis = analyse(network)
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    for node in pruned.graph.nodes:
        if node.name.startswith("scaled_dot_product"):
            node.kwargs = {}
    assert not verify(network, analysis, keep, pruned).passed


def test_strict_attention_keeps_the_residual_stream_only_where_something_needs_it(networks):
    analysis = analyse(networks["dot product"])
    (stream,) = [group for group in analysis.groups if group.label == "stem"]
    assert len(stream.components) == DIM
