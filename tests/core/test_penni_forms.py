"""Kernel sharing of single layers: the decomposition, its counts, and forms that compute the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.analysis import profile
from core.measure import independent_costs
from core.network import Network
from core.penni.costs import sparse_counts
from core.penni.decomposition import SharedKernels, decompose, kernels_for_energy
from core.penni.rewriting import SharedLayer, executable, fused, trainable
from core.penni.sites import sites
from core.rewriting import compare_forms
from tests.core.penni_cases import seeded

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def random_shared(outputs: int, inputs: int, kernels: int, kernel: tuple[int, ...], seed: int = 0) -> SharedKernels:
    generator = torch.Generator().manual_seed(seed)
    taps = int(torch.tensor(kernel).prod())
    coefficients = torch.randn(outputs, inputs, kernels, generator=generator)
    return SharedKernels(coefficients, torch.randn(kernels, taps, generator=generator), kernel).normalised()


class TestDecomposition:
    @pytest.mark.parametrize("shape", [(8, 5, 3, 3), (6, 4, 3, 2), (5, 7, 3), (4, 3, 2, 3, 2), (2, 1, 5, 5)])
    def test_as_many_kernels_as_taps_give_the_weight_back(self, shape):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        shared = decompose(weight, weight[0, 0].numel())
        assert torch.allclose(shared.weight(), weight, atol=1e-12)
        assert torch.allclose(shared.basis @ shared.basis.T, torch.eye(shared.kernels, dtype=torch.float64), atol=1e-12)

    @pytest.mark.parametrize("kernels", [1, 3, 5])
    def test_fewer_kernels_are_the_best_approximation_and_keep_the_mean(self, kernels):
        weight = 1.0 + torch.randn((8, 5, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        error = (decompose(weight, kernels).weight() - weight).norm()
        values = torch.linalg.svdvals(weight.reshape(40, 9))
        assert float(error) == pytest.approx(float(values[kernels:].norm()), rel=1e-9)

    def test_energy_takes_the_fewest_kernels_that_hold_it(self):
        weight = random_shared(8, 6, 3, (3, 3)).weight()
        assert kernels_for_energy(weight, 1 - 1e-6) == 3
        values = torch.linalg.svdvals(weight.double().reshape(48, 9)).square()
        assert kernels_for_energy(weight, 0.6) == 1 + int((values.cumsum(0) / values.sum() < 0.6).sum())
        assert kernels_for_energy(torch.zeros(4, 4, 3, 3), 0.5) >= 1

    def test_kernels_of_unit_norm_carry_the_same_weight(self):
        shared = random_shared(4, 3, 5, (3, 3))
        louder = SharedKernels(shared.coefficients / 7, shared.basis * 7, shared.kernel)
        assert torch.allclose(louder.normalised().basis.norm(dim=1), torch.ones(5))
        assert torch.allclose(louder.normalised().weight(), shared.weight(), atol=1e-6)


def test_nonzeros_count_whatever_their_sign():
    shared = SharedKernels(
        torch.tensor([[[-1.0, 0.0], [0.0, 0.0]], [[-2.0, 0.0], [1e-9, 0.0]]]), torch.ones(2, 9), (3, 3)
    )
    counts = sparse_counts(shared, positions=10)
    assert (counts.params, counts.macs) == (3 + 9, 10 * (2 * 9 + 3))


class TestForms:
    @settings(max_examples=40, deadline=None)
    @given(
        rank=st.sampled_from([1, 2, 3]),
        stride=st.integers(1, 2),
        padding=st.sampled_from([0, 1, "same", "valid"]),
        dilation=st.integers(1, 2),
        bias=st.booleans(),
        kept=st.sampled_from([0.3, 0.7, 1.0]),
        single=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def test_two_stages_and_the_trained_form_compute_the_rebuilt_convolution(
        self, rank, stride, padding, dilation, bias, kept, single, seed
    ):
        stride = 1 if padding == "same" else stride
        generator = torch.Generator().manual_seed(seed)
        kernel = (3, 2, 2)[:rank]
        module = CONVOLUTIONS[rank](4, 5, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)
        network = Network.from_module(seeded(module, seed).requires_grad_(False), {"x": (4, *[8] * rank)})
        (site,) = sites(network)
        shared = random_shared(5, 4, 3, kernel, seed)
        mask = torch.rand(shared.coefficients.shape if single else (4, 3), generator=generator) < kept
        shared = SharedKernels(shared.coefficients * mask, shared.basis, kernel)
        if not bool(shared.live.any()):
            return
        layers = {SharedLayer.of(site, shared): shared}
        trained = trainable(network, layers)
        plain, delivered = fused(network, trained, layers), executable(network, trained, layers)
        assert torch.equal(plain.tensors[site.weight], shared.weight()) or torch.allclose(
            plain.tensors[site.weight], shared.weight(), atol=1e-6
        )
        for form in (trained, delivered):
            outcome = compare_forms(plain, form, [site.node], seed)
            assert outcome.passed
            assert outcome.max_relative_error < 1e-6
        assert independent_costs(delivered) == profile(delivered).costs

    def test_depthwise_grouped_pointwise_and_shared_weights_have_no_sites(self):
        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.plain = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
                self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
                self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
                self.pointwise = nn.Conv2d(8, 8, 1)
                self.twice = nn.Conv2d(8, 8, 3, padding=1)

            def forward(self, x):
                x = self.pointwise(self.grouped(self.depthwise(self.plain(x))))
                return self.twice(self.twice(x))

        network = Network.from_module(Module(), {"x": (8, 6, 6)})
        assert [(site.path, site.kernel, site.positions) for site in sites(network)] == [("plain", (1, 3), 36)]

    def test_columns_that_read_every_channel_once_need_no_gathering(self):
        network = Network.from_module(nn.Conv2d(4, 5, 3), {"x": (4, 6, 6)})
        (site,) = sites(network)
        shared = random_shared(5, 4, 1, (3, 3))
        layers = {SharedLayer.of(site, shared): shared}
        delivered = executable(network, trainable(network, layers), layers)
        assert not any(name.endswith("channels") for name in delivered.tensors)
        assert profile(delivered).costs.macs == 16 * (4 * 9 + 5 * 4)

    def test_nodes_that_are_not_rewritten_keep_their_names_beside_new_ones(self):
        # The graph numbers its convolutions; the new form of the first has two.
        module = seeded(nn.Sequential(nn.Conv2d(4, 5, 3), nn.Conv2d(5, 4, 3), nn.Conv2d(4, 3, 3)))
        network = Network.from_module(module.requires_grad_(False), {"x": (4, 9, 9)})
        first, second, third = sites(network)
        shared = random_shared(5, 4, 2, (3, 3))
        layers = {SharedLayer.of(first, shared): shared}
        trained = trainable(network, layers)
        plain, delivered = fused(network, trained, layers), executable(network, trained, layers)
        names = {node.name for node in delivered.graph.nodes}
        assert {node.name for node in network.graph.nodes if node.op == "call_function"} <= names
        outcome = compare_forms(plain, delivered, [first.node, second.node, third.node], 0)
        assert outcome.passed
        assert outcome.checked == 4
