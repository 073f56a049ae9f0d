"""Layers in the middle are compared at the channels that are left, and watching them leaves no trace."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from core.module_form import to_module
from core.network import Network
from core.recovery import RecoveryConfig, load_dataset, recover
from core.recovery.features import MOST_LAYERS, NO_FEATURES, Features
from core.recovery.teacher import folded
from tests.core.recovery_cases import digits, pruned_and_kept, pruned_network, trained_network

CPU = torch.device("cpu")


def said(features: Features, network: Network, x: torch.Tensor) -> dict[str, torch.Tensor]:
    module = to_module(network)
    with torch.no_grad(), features.watch(module) as found:
        module(x)
    return found


def test_every_convolution_is_compared_at_the_channels_that_are_left():
    pruned, kept = pruned_and_kept()
    features = Features.of(pruned, trained_network(), kept, CPU)
    convolutions = [name for name, tensor in pruned.tensors.items() if tensor.ndim == 4]
    assert sorted(features.rows) == sorted(name.removesuffix(".weight") for name in convolutions)
    x = torch.rand(3, 1, 8, 8)
    own, whole = (said(features, network, x) for network in (pruned, trained_network()))
    for path, rows in features.rows.items():
        assert own[path].shape[1] == (whole[path].shape[1] if rows is None else len(rows))
    shares = []
    for path, rows in features.rows.items():
        wanted = whole[path] if rows is None else whole[path][:, rows]
        shares.append(float((own[path] - wanted).square().sum() / wanted.square().sum()))
    assert float(features.loss(own, whole)) == pytest.approx(np.mean(shares), rel=1e-4)


def test_a_network_says_what_it_says_and_nobody_listens_afterwards():
    features = Features.of(trained_network(), trained_network(), {}, CPU)
    module, x = to_module(trained_network()), torch.rand(2, 1, 8, 8)
    with features.watch(module) as first:
        module(x)
    held = dict(first)
    module(2 * x)
    assert all(first[path] is held[path] for path in features.rows)
    assert not any(one._forward_hooks for one in module.modules())
    assert float(features.loss(first, held).detach()) == 0


def test_the_teachers_compared_layers_are_not_folded():
    features = Features.of(trained_network(), trained_network(), {}, CPU)
    x = torch.rand(2, 1, 8, 8)
    teacher = folded(to_module(trained_network()), features.rows)
    with features.watch(teacher) as found:
        teacher(x)
    plain = said(features, trained_network(), x)
    assert all(torch.equal(found[path], plain[path]) for path in features.rows)


def test_layers_without_a_counterpart_are_left_out():
    class Two(nn.Module):
        def __init__(self, middle: int) -> None:
            super().__init__()
            self.a, self.b, self.again = nn.Conv2d(1, middle, 3), nn.Conv2d(middle, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.again(self.again(self.b(self.a(x).relu())))

    whole, narrow = (Network.from_module(Two(width), {"x": (1, 8, 8)}) for width in (6, 5))
    # Nothing says which of the six channels the five are; one module is called twice.
    assert list(Features.of(narrow, whole, {}, CPU).rows) == ["b"]
    assert list(NO_FEATURES.rows) == []


def test_of_a_deep_network_some_layers_are_compared_from_the_first_to_the_last():
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(40)))
    network = Network.from_module(deep, {"x": (2, 4, 4)})
    compared = [int(path) for path in Features.of(network, network, {}, CPU).rows]
    assert compared[0] == 0 and compared[-1] == 39 and len(compared) == MOST_LAYERS
    assert {later - earlier for earlier, later in itertools.pairwise(compared)} <= {2, 3}


def test_training_without_labels_compares_layers_and_says_so(tmp_path):
    images, _, split = digits()
    np.savez(tmp_path / "digits.npz", x=images[::4], split=split[::4])
    dataset = load_dataset(tmp_path / "digits.npz")
    config = RecoveryConfig(epochs=2, threads=1)
    found = recover(pruned_network(), trained_network(), dataset, config, kept=pruned_and_kept()[1], seed=0)
    assert found.details["training"]["objective"] == "the original's outputs and 7 of its layers"
    errors = found.details["output_error"]
    assert errors["fine_tuning"] < errors["least_squares_refit"] < errors["pruned"]
