"""Surgery gives a new network that runs, keeps every name, and leaves the original alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.analysis import analyse, profile
from core.architectures import build
from core.surgery import apply, verify
from tests.core.channel_networks import CifarResNet, ShuffleAndDense, Vgg, export, random_keep


def test_the_original_is_not_touched():
    network = export(CifarResNet(), 3, 16, 16)
    before = [(node.name, node.target, node.args, node.kwargs, dict(node.meta)) for node in network.graph.nodes]
    tensors = {name: tensor.clone() for name, tensor in network.tensors.items()}
    analysis = analyse(network)
    pruned = apply(network, analysis, random_keep(analysis, np.random.default_rng(0)))
    assert pruned.graph is not network.graph
    assert before == [(node.name, node.target, node.args, node.kwargs, dict(node.meta)) for node in network.graph.nodes]
    assert all(torch.equal(network.tensors[name], tensor) for name, tensor in tensors.items())


def test_every_state_dict_key_survives_and_unread_tensors_are_kept_as_they_are():
    network = export(CifarResNet(), 3, 16, 16)
    analysis = analyse(network)
    pruned = apply(network, analysis, random_keep(analysis, np.random.default_rng(0)))
    assert pruned.tensors.keys() == network.tensors.keys()
    counter = pruned.tensors["bn1.num_batches_tracked"]
    assert counter.dtype == torch.int64 and counter.shape == ()
    assert pruned.parameter_names == network.parameter_names


@pytest.mark.parametrize(
    "module, shape", [(CifarResNet, (3, 16, 16)), (Vgg, (3, 12, 12)), (ShuffleAndDense, (3, 6, 6))]
)
def test_refreshed_shapes_are_those_of_a_real_run(module, shape):
    network = export(module(), *shape)
    analysis = analyse(network)
    pruned = apply(network, analysis, random_keep(analysis, np.random.default_rng(1)))

    class Recording(torch.fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if isinstance(result, torch.Tensor):
                assert tuple(result.shape) == node.meta["value"].shape, node.name
            return result

    Recording(pruned.module()).run(*pruned.random_inputs(1, 0))


def test_pad_counts_follow_the_kept_zero_channels():
    network = export(CifarResNet(width=8), 3, 16, 16)
    analysis = analyse(network)
    (padding,) = [group for group in analysis.groups if group.label == "layers.1.conv2"]
    assert len(padding.components) == 8
    keep = np.ones(analysis.components, dtype=bool)
    # The zero channels 0–3 are in front, 4–7 behind: keep 1 and 3 in front, 6 behind, and not all of stage 1.
    keep[padding.components[[0, 2, 4, 5, 7]]] = False
    keep[analysis.groups[0].components[[1, 6]]] = False
    pruned = apply(network, analysis, keep)
    pads = [list(node.args[1]) for node in pruned.graph.nodes if node.name.startswith("pad")]
    assert pads[0] == [0, 0, 0, 0, 2, 1]
    assert pads[1] == [0, 0, 0, 0, 8, 8]
    assert pruned.tensors["layers.1.conv2.weight"].shape[0] == 2 + 6 + 1
    result = verify(network, analysis, keep, pruned)
    assert result.passed and result.max_relative_error < 1e-13


def test_a_shortcut_may_lose_all_its_padding():
    network = export(CifarResNet(width=8), 3, 16, 16)
    analysis = analyse(network)
    keep = np.ones(analysis.components, dtype=bool)
    for group in analysis.groups:
        if group.label in ("layers.1.conv2", "layers.2.conv2"):
            keep[group.components] = False
    pruned = apply(network, analysis, keep)
    assert pruned.tensors["linear.weight"].shape == (10, 8)
    assert verify(network, analysis, keep, pruned).passed


def test_keeping_everything_changes_nothing():
    network = export(ShuffleAndDense(), 3, 6, 6)
    analysis = analyse(network)
    pruned = apply(network, analysis, np.ones(analysis.components, dtype=bool))
    inputs = network.random_inputs(5, 0)
    assert torch.equal(pruned.run(*inputs)[0], network.run(*inputs)[0])


def test_a_pruned_network_can_be_analysed_and_pruned_again():
    network = export(ShuffleAndDense(), 3, 6, 6)
    rng = np.random.default_rng(0)
    for _ in range(2):
        analysis = analyse(network)
        keep = random_keep(analysis, rng, fraction=0.7)
        pruned = apply(network, analysis, keep)
        assert verify(network, analysis, keep, pruned).passed
        network = pruned


def test_removing_frozen_channels_is_refused_with_the_reason():
    network = export(Vgg(), 3, 12, 12)
    analysis = analyse(network)
    (outputs,) = [one for one in analysis.slices if (one.tensor, one.axis) == ("classifier.3.weight", 0)]
    keep = np.ones(analysis.components, dtype=bool)
    keep[outputs.component[0]] = False
    with pytest.raises(ValueError, match=r"classifier\.3 \(output\) needs"):
        apply(network, analysis, keep)


def test_emptying_a_layer_is_refused_by_name():
    network = export(Vgg(), 3, 12, 12)
    analysis = analyse(network)
    keep = np.ones(analysis.components, dtype=bool)
    keep[analysis.groups[0].components] = False
    with pytest.raises(ValueError, match=r"every channel of features\.0"):
        apply(network, analysis, keep)


def test_a_keep_of_the_wrong_length_is_refused():
    network = export(Vgg(), 3, 12, 12)
    analysis = analyse(network)
    with pytest.raises(ValueError, match="keep has shape"):
        apply(network, analysis, np.ones(3, dtype=bool))


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet56"])
def test_registered_architectures_are_cut_exactly(name):
    network = export(build(name, {}), 3, 32, 32)
    analysis = analyse(network)
    assert analysis.faults == ()
    keep = random_keep(analysis, np.random.default_rng(0))
    pruned = apply(network, analysis, keep)
    result = verify(network, analysis, keep, pruned)
    assert result.passed and result.max_relative_error < 1e-13
    assert profile(pruned).costs == analysis.costs(analysis.widths(keep))
