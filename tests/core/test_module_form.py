"""The trainable form computes what the network computes, under the network's names, and trains like ordinary modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.analysis import analyse
from core.architectures import build
from core.module_form import layers, to_module, with_trained
from core.network import Network
from core.surgery import apply


class Mixed(nn.Module):
    """Depthwise, transposed, a write through a view, functional weight, module and functional dropout, a convolution used twice, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8))])
        self.shared = nn.Conv2d(8, 8, 1, bias=False)
        self.kernel = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.register_buffer("offset", torch.randn(8, 1, 1))
        self.norm = nn.LayerNorm([8])
        self.groups = nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.prelu = nn.PReLU(8)
        self.drop_channels = nn.Dropout2d(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.blocks[0](self.stem(x)) + self.offset
        x = self.shared(F.relu(self.shared(x)))
        x = self.groups(F.conv2d(x, self.kernel, padding=1, groups=8))
        x = self.drop_channels(self.prelu(self.up(x)))
        x[:, 0] = 0.5
        pooled = self.norm(F.dropout(x.mean((2, 3)), 0.25, self.training))
        return self.head(self.dropout(pooled)), pooled


@pytest.fixture
def mixed() -> Network:
    torch.manual_seed(0)
    return Network.from_module(Mixed(), {"input": (3, 8, 8)})


@pytest.fixture
def pruned_resnet() -> Network:
    torch.manual_seed(0)
    network = Network.from_module(build("cifar_resnet20", {}), {"input": (3, 32, 32)})
    analysis = analyse(network)
    keep = torch.rand(analysis.components, generator=torch.Generator().manual_seed(3)).numpy() > 0.4
    prunable = [c for group in analysis.groups for c in group.components]
    fixed = [c for c in range(analysis.components) if c not in set(prunable)]
    keep[fixed] = True
    for group in analysis.groups:
        keep[group.components[:4]] = True
    return apply(network, analysis, keep)


def test_forward_equals_the_network(mixed, pruned_resnet):
    for network in (mixed, pruned_resnet):
        inputs = network.random_inputs(batch=3, seed=1)
        outputs = to_module(network)(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for got, want in zip(outputs, network.run(*inputs), strict=True):
            torch.testing.assert_close(got, want)


def test_writes_through_views_survive_the_export(mixed):
    torch.manual_seed(0)
    (x,) = mixed.random_inputs(batch=2, seed=5)
    torch.testing.assert_close(mixed.run(x), Mixed().eval()(x))


def test_state_dict_has_exactly_the_networks_names(mixed, pruned_resnet):
    for network in (mixed, pruned_resnet):
        assert set(to_module(network).state_dict()) == set(network.tensors)


def test_parametric_calls_become_modules_at_their_own_paths(mixed):
    kinds = {layer.path: layer.kind for layer in layers(mixed).values()}
    assert kinds["stem"] is nn.Conv2d and kinds["blocks.0.1"] is nn.BatchNorm2d and kinds["head"] is nn.Linear
    assert kinds["norm"] is nn.LayerNorm and kinds["groups"] is nn.GroupNorm and kinds["dropout"] is nn.Dropout
    assert kinds["up"] is nn.ConvTranspose2d and kinds["prelu"] is nn.PReLU and kinds["drop_channels"] is nn.Dropout2d
    assert "kernel" not in kinds
    module = to_module(mixed)
    assert module.get_submodule("stem").padding == "same"
    assert module.get_submodule("blocks.0.0").groups == 8


def test_training_mode_brings_dropout_and_batch_statistics_back(mixed):
    module = to_module(mixed).train()
    (x,) = mixed.random_inputs(batch=16, seed=2)
    norm = module.get_submodule("blocks.0.1")
    before = norm.running_mean.clone()
    torch.manual_seed(0)
    first = module(x)[0]
    assert not torch.equal(norm.running_mean, before) and int(norm.num_batches_tracked) == 1
    assert not torch.equal(first, module(x)[0])
    module.eval()
    torch.testing.assert_close(module(x)[0], module(x)[0], rtol=0, atol=0)


def test_training_never_changes_the_network_and_its_values_come_back(mixed):
    untouched = {name: tensor.clone() for name, tensor in mixed.tensors.items()}
    module = to_module(mixed).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    (x,) = mixed.random_inputs(batch=8, seed=3)
    module(x)[0].square().sum().backward()
    optimizer.step()
    for name, tensor in mixed.tensors.items():
        torch.testing.assert_close(tensor, untouched[name], rtol=0, atol=0)
    trained = with_trained(mixed, module)
    module.eval()
    torch.testing.assert_close(trained.run(x)[0], module(x)[0])
    for name in ("stem.weight", "shared.weight", "kernel", "blocks.0.1.running_mean", "blocks.0.1.num_batches_tracked"):
        assert not torch.equal(trained.tensors[name], untouched[name]), name
    torch.testing.assert_close(trained.tensors["offset"], untouched["offset"], rtol=0, atol=0)


def test_a_convolution_used_twice_is_one_module_with_one_weight(mixed):
    module = to_module(mixed)
    assert sum(1 for name, _ in module.named_parameters() if name.startswith("shared")) == 1
    assert sum(node.target == "shared" for node in module.graph.nodes if node.op == "call_module") == 2


def test_a_layer_that_reads_a_stored_table_is_a_module_over_it():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.register_buffer("table", torch.randn(6, 2))
            self.embed = nn.Linear(2, 6)

        def forward(self, x):
            return self.stem(x) + self.embed(self.table)

    network = Network.from_module(Positions(), {"input": (3, 6, 6)})
    module = to_module(network)
    (x,) = network.random_inputs(batch=2, seed=0)
    assert isinstance(module.embed, nn.Linear)
    torch.testing.assert_close(module(x), network.run(x)[0], rtol=0, atol=0)
