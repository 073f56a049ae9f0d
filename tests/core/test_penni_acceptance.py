"""What kernel sharing has to do, one test each (Li, Hanson, Li, Chen: PENNI, arXiv 2005.07133, and what its code gets
wrong).

1 decomposition, 2 two stages, 3 counts, 4 shrinking, 5 residual streams, 6 masks, 7 plain layers.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.budget import Cap
from core.engine import compress
from core.module_form import to_module, with_trained
from core.network import Network
from core.penni.costs import dense_counts, sparse_counts
from core.penni.decomposition import SharedKernels, decompose
from core.penni.rewriting import SharedLayer, executable, trainable
from core.penni.shrinking import shrink
from core.penni.sites import sites
from tests.core.penni_cases import Chain, Residual, difference, network_of, seeded, silenced, silent_value
from tests.core.recovery_cases import digit_requests

CIFAR_LAYERS = {
    # (outputs, inputs, positions) of every 3×3 convolution, and what the other ones cost: (params, macs).
    "vgg16": (
        [(64, 3, 1024), (64, 64, 1024), (128, 64, 256), (128, 128, 256), (256, 128, 64), (256, 256, 64)]
        + [(256, 256, 64), (512, 256, 16), (512, 512, 16), (512, 512, 16)]
        + [(512, 512, 4)] * 3,
        (0, 0),
    ),
    "resnet56": (
        [(16, 3, 1024)]
        + [(16, 16, 1024)] * 18
        + [(32, 16, 256)]
        + [(32, 32, 256)] * 17
        + [(64, 32, 64)]
        + [(64, 64, 64)] * 17,
        (0, 0),
    ),
    "resnet18": (
        [(64, 3, 1024)]
        + [(64, 64, 1024)] * 4
        + [(128, 64, 256), *[(128, 128, 256)] * 3]
        + [(256, 128, 64), *[(256, 256, 64)] * 3]
        + [(512, 256, 16), *[(512, 512, 16)] * 3],
        # The 1×1 convolutions of the shortcuts stay as they are.
        (64 * 128 + 128 * 256 + 256 * 512, 256 * 64 * 128 + 64 * 128 * 256 + 16 * 256 * 512),
    ),
}
# Params and MACs in millions before any pruning, as printed: dense, then with 2, 3, 5 and 8 shared kernels.
CIFAR_TABLE = {
    "vgg16": ["14.710464 313.20", "3.269 72.94", "4.904 109.40", "8.173 182.34", "13.077 291.74"],
    "resnet56": ["0.848304 125.49", "0.190 37.12", "0.284 55.68", "0.474 92.80", "0.758 148.48"],
    "resnet18": ["11.159232 555.42", "2.614 136.71", "3.835 201.91", "6.277 332.33", "9.940 527.95"],
}


def test_1_as_many_shared_kernels_as_taps_reproduce_the_weight_to_rounding():
    weight = 0.3 + torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float((decompose(weight, 9).weight() - weight).abs().max()) < 1e-13
    values = torch.linalg.svdvals(weight.reshape(-1, 9))
    error = (decompose(weight, 4).weight() - weight).norm()
    assert float(error) == pytest.approx(float(values[4:].norm()), rel=1e-9)


@pytest.mark.parametrize(("stride", "padding", "dilation"), list(itertools.product((1, 2), (0, 1), (1, 2))))
def test_2_two_stages_are_the_rebuilt_convolution(stride, padding, dilation):
    module = seeded(nn.Conv2d(4, 6, (3, 2), stride=stride, padding=padding, dilation=dilation)).requires_grad_(False)
    network = Network.from_module(module, {"x": (4, 9, 8)})
    (site,) = sites(network)
    shared = decompose(network.tensors["weight"].double(), 3)
    layers = {SharedLayer.of(site, shared): shared}
    delivered = executable(network.to(torch.float64), trainable(network.to(torch.float64), layers), layers)
    x = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = network.tensors["bias"].double()
    wanted = F.conv2d(x, shared.weight(), bias, stride, padding, dilation)
    assert float((delivered.run(x)[0] - wanted).abs().max()) < 1e-13


@pytest.mark.parametrize("net", CIFAR_LAYERS)
def test_3_counts_before_pruning_are_those_of_the_cost_model_to_the_printed_digit(net):
    layers, (params, macs) = CIFAR_LAYERS[net]
    for kernels, printed in zip((None, 2, 3, 5, 8), CIFAR_TABLE[net], strict=True):
        found_params, found_macs = params, macs
        for outputs, inputs, positions in layers:
            if kernels is None:
                counts = dense_counts(outputs, inputs, 9, positions)
            else:
                counts = sparse_counts(
                    SharedKernels(torch.ones(outputs, inputs, kernels), torch.ones(kernels, 9), (3, 3)), positions
                )
            found_params, found_macs = found_params + counts.params, found_macs + counts.macs
        digits = 6 if kernels is None else 3
        assert f"{found_params / 1e6:.{digits}f} {found_macs / 1e6:.2f}" == printed


@pytest.mark.parametrize("padding", [0, 1])
def test_4_shrinking_hand_zeroed_channels_leaves_the_outputs_with_constants_of_batch_norms_too(padding):
    network = silenced(network_of(Chain(padding, bias=True)), "second.weight", [0], axis=1)
    for channel, value in ((3, -0.4), (6, 0.8)):
        network = silent_value(silenced(network, "first.weight", [channel]), "bn1", channel, value)
    found = shrink(network)
    # Unread, closed by the ReLU, and a number that only a reader without padding takes over.
    removed = 3 if padding == 0 else 2
    assert found.network.tensors["first.weight"].shape == (8 - removed, 3, 3, 3)
    assert found.network.tensors["bn1.running_mean"].shape == (8 - removed,)
    assert found.network.tensors["second.weight"].shape == (6, 8 - removed, 3, 3)
    assert difference(network, found.network) < 1e-5


def test_5_a_residual_channel_goes_where_every_member_is_dead_and_shapes_stay_consistent():
    network = network_of(Residual())
    readers = ("a1.weight", "side.weight", "head.weight")
    for name in readers:
        network = silenced(network, name, [5], axis=1)
    for name in readers[:2]:
        network = silenced(network, name, [2], axis=1)
    found = shrink(network)
    assert {name: tuple(found.network.tensors[name].shape[:2]) for name in (*readers, "stem.weight", "a2.weight")} == {
        "stem.weight": (7, 3),
        "a1.weight": (6, 7),
        "a2.weight": (7, 6),
        "side.weight": (7, 7),
        "head.weight": (4, 7),
    }
    assert difference(network, found.network) < 1e-5


def test_6_masked_coefficients_stay_zero_through_momentum_and_weight_decay():
    network = Network.from_module(seeded(nn.Conv2d(4, 5, 3)), {"x": (4, 6, 6)})
    (site,) = sites(network)
    shared = decompose(network.tensors["weight"], 3)
    mask = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    shared = SharedKernels(shared.coefficients * mask, shared.basis, shared.kernel)
    (layer,) = layers = {SharedLayer.of(site, shared): shared}
    form = trainable(network, layers)
    module = to_module(form).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    for seed in range(5):
        optimizer.zero_grad()
        module(*network.random_inputs(4, seed)).square().mean().backward()
        optimizer.step()
    trained = layer.factors(with_trained(form, module).tensors)
    assert int((trained.coefficients != 0).sum()) == int(mask.sum())
    assert not torch.equal(trained.coefficients, shared.coefficients)
    assert not torch.equal(trained.basis, shared.basis)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[dict, Path]:
    """A job by the paper's recipe, unit and count."""
    folder = tmp_path_factory.mktemp("paper")
    method = {
        "type": "penni",
        "unit": "coefficient",
        "recipe": "paper",
        "recipe_epochs": 3,
        "bases": {"layer2.0.conv2": 4},
        "sparse_params": 0.4,
    }
    outputs = ("onnx", "safetensors", "report")
    cap = Cap("macs", max_ratio=0.95)
    request = digit_requests(folder)((method,), cap, "labelled", recovery={"epochs": 3}, outputs=outputs)
    return compress(request, folder / "out"), folder / "out"


def test_7_what_is_delivered_runs_in_plain_layers_only(published):
    result, folder = published
    operators = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    plain = {"Conv", "Gather", "Relu", "Add", "Slice", "Pad", "GlobalAveragePool", "ReduceMean", "Gemm", "MatMul"}
    assert operators <= plain | {"Flatten", "Reshape"}
    assert result["equivalence"]["passed"]


def test_the_papers_count_is_aimed_at_and_reported_beside_the_dense_one(published):
    result, _ = published
    share = result["sparse"]["params"] / result["baseline"]["params"]
    assert 0.38 <= share <= 0.4
    assert result["compressed"]["params"] > result["sparse"]["params"]
    assert result["met"]
    report = result["recovery"]["rewriting"]
    (aim,) = report["aims"]
    assert aim["value"] == result["sparse"]["params"] <= aim["limit"]
    assert report["nonzeros"] < report["coefficients"]
    assert report["kernels"].get("layer2.0.conv2", 4) == 4
    assert result["compressed"]["accuracy"] > 0.85
