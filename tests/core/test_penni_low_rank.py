"""The third form of a layer: a convolution to fewer channels and a 1×1 convolution, for 1×1 layers and low ranks."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core.analysis import profile
from core.budget import Budget, Cap
from core.deliver.pt2_file import write_pt2
from core.engine import CompressionRequest, compress
from core.measure import independent_costs
from core.network import Network
from core.penni.decomposition import decompose, exact_rank
from core.penni.fitting import KernelSolver
from core.penni.pruning import Pruning
from core.penni.reduction import reduce_columns
from core.penni.rewriting import SharedLayer, executable, fused, trainable
from core.penni.sites import sites
from core.penni.slimming import deliver
from core.recovery.refit import refit
from core.rewriting import compare_forms
from tests.core.penni_cases import mobile_network, network_of, seeded
from tests.core.recovery_cases import save_digits


def of_rank(outputs: int, inputs: int, kernel: tuple[int, ...], rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    taps = inputs * int(np.prod(kernel))
    product = torch.randn(outputs, rank, generator=generator) @ torch.randn(rank, taps, generator=generator)
    return (product / taps**0.5).reshape(outputs, inputs, *kernel)


def macs_cap(network: Network, ratio: float):
    return Budget((Cap("macs", max_ratio=ratio),)).constraints(profile(network).costs)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((1, 1), {}),
        ((1, 1), {"stride": 2, "bias": False}),
        ((3, 2), {"stride": 2, "padding": 1, "dilation": 2}),
        ((3, 3), {"padding": "same"}),
        ((3,), {"padding": 1}),
        ((1,), {}),
    ],
)
def test_the_chain_and_the_trained_form_compute_the_rebuilt_convolution_at_counted_costs(kernel, options):
    module = {1: nn.Conv1d, 2: nn.Conv2d}[len(kernel)](6, 10, kernel, **options)
    network = Network.from_module(seeded(module).requires_grad_(False), {"x": (6, *[9] * len(kernel))})
    (site,) = sites(network, pointwise=True)
    shared = decompose(network.tensors["weight"], 3, span=6)
    (layer,) = layers = {SharedLayer.of(site, shared): shared}
    form = trainable(network, layers)
    plain, delivered = fused(network, form, layers), executable(network, form, layers)
    for other in (form, delivered):
        assert compare_forms(plain, other, [site.node], 0).max_relative_error < 1e-6
    (x,) = network.random_inputs(2, 1)
    wanted, found = plain.run(x)[0], delivered.run(x)[0]
    assert float((wanted - found).norm() / wanted.norm()) < 1e-5
    costs = profile(delivered).costs
    assert independent_costs(delivered) == costs
    taps = 6 * int(np.prod(kernel))
    assert layer.counts.params == 3 * (taps + 10)
    assert costs.macs == layer.counts.macs == site.positions * 3 * (taps + 10)
    assert {name for name in delivered.tensors if name != "bias"} == {"weight.basis", "weight.coefficients"}


def test_the_exact_rank_is_that_of_the_weight_whatever_zero_rows_it_has():
    weight = of_rank(12, 9, (3, 3), 4)
    assert exact_rank(weight) == 4
    weight[5:] = 0
    assert exact_rank(weight) == 4
    assert exact_rank(torch.randn(12, 9, 3, 3)) == 12
    assert exact_rank(torch.zeros(4, 4, 1, 1)) == 1


def test_channels_are_cut_from_the_factors_as_from_the_weight():
    weight = of_rank(12, 9, (3, 3), 4)
    shared = decompose(weight, 4, span=9)
    rows, inputs = np.array([0, 3, 4, 11]), np.array([1, 2, 8])
    cut = shared.with_channels((rows, inputs))
    assert torch.allclose(cut.weight(), weight[rows][:, inputs], atol=1e-6)
    assert torch.allclose(cut.basis.norm(dim=1), torch.ones(4), atol=1e-6)
    used = torch.ones(12, 9, dtype=torch.bool)
    used[3], used[:, 5] = False, False
    assert torch.allclose(shared.with_used(used).weight(), weight * used[..., None, None], atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_the_fit_is_the_best_matrix_of_its_rank(bias):
    generator = torch.Generator().manual_seed(0)
    network = Network.from_module(seeded(nn.Conv2d(8, 6, 1, bias=bias)).requires_grad_(False), {"x": (8, 6, 6)})
    (site,) = sites(network, pointwise=True)
    mixed = torch.randn(256, 8, 6, 6, generator=generator) * torch.logspace(-1, 1, 8).view(1, 8, 1, 1)
    images = torch.einsum("nchw,cd->ndhw", mixed, torch.randn(8, 8, generator=generator)) + 0.5
    start = decompose(network.tensors["weight"], 3, span=8)
    truncated = network.with_tensors({**network.tensors, "weight": start.weight()})
    wanted = network.run(images)[0]
    solver = KernelSolver(start, 1)
    found = refit(truncated, network, images, kept={}, solvers={site.weight: solver}).network
    assert int(solver.shared.live.sum()) == 3
    # Of all matrices of rank 3, that of the leading directions of what the layer says.
    said = wanted.permute(0, 2, 3, 1).reshape(-1, 6).double()
    if bias:
        said = said - said.mean(dim=0)
    values = torch.linalg.svdvals(said)
    error, before = (float((one.run(images)[0] - wanted).double().norm()) for one in (found, truncated))
    assert error == pytest.approx(float(values[3:].norm()), rel=0.02)
    assert error < 0.8 * before


def test_a_layer_that_is_of_low_rank_already_becomes_a_chain_and_says_the_same():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.wide = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(torch.relu(self.wide(torch.relu(self.stem(x)))).mean((2, 3)))

    network = network_of(Plain())
    network = network.with_tensors({**network.tensors, "wide.weight": of_rank(16, 16, (3, 3), 5)})
    base, caps = profile(network).costs, macs_cap(network, 0.5)
    reduced = reduce_columns(network, Pruning(caps, round_to=4), None)
    assert reduced.report["forms"] == {"wide": "low_rank"}
    assert reduced.report["kernels"] == {"wide": 5}
    delivered = deliver(reduced.network, trainable(reduced.network, reduced.shared), reduced.layers, reduced.dense)
    assert profile(delivered).costs == dataclasses.replace(reduced.costs, size_bytes=None)
    assert base.macs - reduced.costs.macs == 81 * (16 * 144 - 5 * (144 + 16))
    (x,) = network.random_inputs(4, 3)
    wanted, found = network.run(x)[0], delivered.run(x)[0]
    assert float((wanted - found).norm() / wanted.norm()) < 1e-5


def test_a_job_on_a_network_of_1x1_layers_takes_chains_and_delivers_plain_layers(tmp_path):
    write_pt2(mobile_network(), tmp_path / "mobile.pt2")
    request = CompressionRequest(
        tmp_path / "mobile.pt2",
        Budget((Cap("macs", max_ratio=0.5),)),
        methods=({"type": "penni"},),
        dataset_path=save_digits(tmp_path),
        recovery={"epochs": 0},
        outputs=("onnx", "safetensors", "pwt", "report"),
    )
    out = tmp_path / "out"
    result = compress(request, out)
    (constraint,) = result["constraints"]
    assert constraint["met"]
    assert constraint["value"] >= 0.95 * constraint["limit"]
    assert result["equivalence"]["max_relative_error"] <= 1e-5
    report = result["recovery"]["rewriting"]
    assert report["low_rank_layers"] == len(report["forms"]) >= 3
    assert set(report["forms"].values()) == {"low_rank"}
    rows = {row["name"]: row for row in result["layers"]}
    for path, kernels in report["kernels"].items():
        assert rows[path]["after"]["macs"] * 96 * 24 == rows[path]["before"]["macs"] * kernels * (96 + 24)
    nodes = onnx.load(out / "model.onnx").graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    assert sum(node.op_type == "Conv" for node in nodes) == 4 + 7 + len(report["forms"])
    stored = load_file(out / "model.safetensors")
    for path, kernels in report["kernels"].items():
        assert stored[f"{path}.basis"].shape[0] == stored[f"{path}.coefficients"].shape[1] == kernels
        assert f"{path}.weight" not in stored
    assert result["compressed"]["accuracy"] >= result["baseline"]["accuracy"] - 0.05
