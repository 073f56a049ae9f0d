"""The closed-form refit: against float64 least squares, and on networks where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from core.analysis.schema import bind, operator_name
from core.network import Network
from core.recovery import RecoveryConfig, load_dataset, recover
from core.recovery.evaluation import accuracy, predict
from core.recovery.least_squares import RIDGES, _change, normal_equations
from core.recovery.patches import matrix_layer
from core.recovery.refit import refit
from tests.core.recovery_cases import digits, pruned_and_kept, pruned_network, save_digits, trained_network

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def layers(network: Network):
    for node in network.graph.nodes:
        if node.op == "call_function" and operator_name(node.target) in ("conv1d", "conv2d", "conv3d", "linear"):
            call = bind(node)
            yield matrix_layer(operator_name(node.target), call, network.tensors[call["weight"].target])


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    rank=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    seed=st.integers(0, 100),
)
def test_rows_times_the_matrix_are_the_convolution(rank, groups, kernel, stride, dilation, padding, seed):
    stride = 1 if padding == "same" else stride
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = CONVOLUTIONS[rank](
            4, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
        )
    network = Network.from_module(module, {"x": (4, *[7] * rank)})
    (layer,) = layers(network)
    x, weight = images(3, 4, *[7] * rank, seed=seed), network.tensors["weight"]
    (wanted,) = network.run(x)
    found = layer.rows(x) @ layer.matrix(weight).transpose(1, 2)
    assert torch.allclose(found, layer.targets(wanted), atol=1e-5)


def test_the_normal_equations_give_the_ridge_solution_of_float64_least_squares():
    module = nn.Linear(6, 3)
    network = Network.from_module(module, {"x": (6,)})
    (layer,) = layers(network)
    x, target = images(200, 6), images(200, 3, seed=1)
    weight, bias = network.tensors["weight"], network.tensors["bias"]
    normal = normal_equations(layer, x, target, weight, bias)
    change = _change(normal, 1e-3)[0].numpy()
    rows = np.concatenate([x.numpy(), np.ones((200, 1))], axis=1).astype(np.float64)
    start = np.concatenate([weight.numpy(), bias.numpy()[:, None]], axis=1).T.astype(np.float64)
    gram = rows.T @ rows
    strength = 1e-3 * np.diag(gram).mean()
    wanted = np.linalg.lstsq(
        np.concatenate([rows, np.sqrt(strength) * np.eye(7)]),
        np.concatenate([target.numpy().astype(np.float64), np.sqrt(strength) * start]),
        rcond=None,
    )[0]
    assert np.abs(start + change - wanted).max() < 1e-6
    error = np.square(target.numpy() - rows @ (start + change)).sum()
    assert float(normal.error(torch.from_numpy(change)[None])) == pytest.approx(error, rel=1e-6)


class Chain(nn.Module):
    """Two convolutions around a batch-norm; the last channel of the first is the sum of two others."""

    def __init__(self, width: int = 6, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, 8, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.second(self.first(x))).relu().mean((2, 3)))


def chain() -> tuple[Network, Network, dict[str, tuple[np.ndarray | None, ...]]]:
    """(original, pruned, kept): the channel that is gone can be made up for exactly."""
    torch.manual_seed(0)
    module = Chain()
    with torch.no_grad():
        module.first.weight[5] = module.first.weight[0] - 2 * module.first.weight[3]
    original = Network.from_module(module, {"x": (3, 8, 8)})
    smaller = Chain(5)
    smaller.load_state_dict(
        {
            **module.state_dict(),
            "first.weight": module.first.weight[:5],
            "second.weight": module.second.weight[:, :5],
        }
    )
    rows = np.arange(5)
    kept = {"first.weight": (rows, None, None, None), "second.weight": (None, rows, None, None)}
    return original, Network.from_module(smaller, {"x": (3, 8, 8)}), kept


def test_a_channel_that_the_others_can_replace_is_replaced():
    original, pruned, kept = chain()
    found = refit(pruned, original, images(64, 3, 8, 8), kept=kept)
    fresh = images(16, 3, 8, 8, seed=9)
    (wanted,), (before,), (after,) = (network.run(fresh) for network in (original, pruned, found.network))
    assert (before - wanted).norm() > 0.05 * wanted.norm()
    assert (after - wanted).norm() < 1e-3 * wanted.norm()
    assert "second.weight" in found.layers and "first.weight" not in found.layers
    assert all(after < before for before, after in found.layers.values())


def test_a_layer_whose_inputs_are_whole_keeps_its_weights_bit_for_bit():
    original, pruned, kept = chain()
    found = refit(pruned, original, images(64, 3, 8, 8), kept=kept).network
    assert torch.equal(found.tensors["first.weight"], pruned.tensors["first.weight"])
    assert torch.equal(found.tensors["norm.running_var"], pruned.tensors["norm.running_var"])


def test_nothing_changes_where_nothing_was_removed():
    original, _, _ = chain()
    found = refit(original, original, images(32, 3, 8, 8), kept={})
    assert found.layers == {}
    assert all(torch.equal(found.network.tensors[name], tensor) for name, tensor in original.tensors.items())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.stem(x)
        return skip + self.norm(self.inner(skip))


def test_the_branch_that_is_computed_last_takes_up_what_the_skip_has_lost():
    torch.manual_seed(1)
    module = Residual()
    module.norm.running_var.uniform_(0.5, 2)
    original = Network.from_module(module, {"x": (3, 8, 8)})
    # The skip loses half of what it says, in a way that the inner branch can make up for.
    halved = {
        **original.tensors,
        "stem.weight": original.tensors["stem.weight"] * 0.5,
        "stem.bias": original.tensors["stem.bias"] * 0.5,
    }
    start = original.with_tensors(halved)
    x = images(64, 3, 8, 8)

    # The stem itself sees whole inputs and is left alone; what it lost is made up for behind it.
    found = refit(start, original, x, kept={})
    fresh = images(16, 3, 8, 8, seed=9)
    (wanted,), (before,), (after,) = (network.run(fresh) for network in (original, start, found.network))
    assert set(found.layers) == {"inner.weight"}
    assert (after - wanted).norm() < 0.01 * (before - wanted).norm()


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.stem(x)).relu())


def test_a_weight_that_two_calls_share_keeps_its_values():
    torch.manual_seed(0)
    original = Network.from_module(Shared(), {"x": (3, 4, 4)})
    start = original.with_tensors({**original.tensors, "stem.bias": original.tensors["stem.bias"] + 1})
    found = refit(start, original, images(32, 3, 4, 4), kept={})
    assert all(torch.equal(found.network.tensors[name], tensor) for name, tensor in start.tensors.items())


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_groups_are_refitted_each_on_its_own(groups):
    torch.manual_seed(0)

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.grouped = nn.Conv2d(6, 12, 3, groups=groups)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.grouped(self.stem(x))

    original = Network.from_module(Grouped(), {"x": (3, 6, 6)})
    # Each channel scaled: another weight of the grouped layer gives the same outputs.
    scale = torch.tensor([0.5, 2, 3, 0.25, 1.5, 4])
    start = original.with_tensors(
        {
            **original.tensors,
            "stem.weight": original.tensors["stem.weight"] * scale.view(-1, 1, 1, 1),
            "stem.bias": original.tensors["stem.bias"] * scale,
        }
    )
    found = refit(start, original, images(256, 3, 6, 6), kept={}).network
    fresh = images(16, 3, 6, 6, seed=9)
    (wanted,), (before,), (after,) = (network.run(fresh) for network in (original, start, found))
    assert (before - wanted).norm() > 0.3 * wanted.norm() and (after - wanted).norm() < 0.02 * wanted.norm()


def test_images_that_say_nothing_leave_the_weights_alone():
    original, pruned, kept = chain()
    found = refit(pruned, original, torch.zeros(32, 3, 8, 8), kept=kept)
    assert all(bool(tensor.isfinite().all()) for tensor in found.network.tensors.values())
    assert torch.equal(found.network.tensors["second.weight"], pruned.tensors["second.weight"])


def test_every_strength_that_is_tried_pulls_harder_than_the_one_before():
    assert list(RIDGES) == sorted(RIDGES) and RIDGES[0] > 0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(save_digits(tmp_path_factory.mktemp("digits")))


class TestRecovery:
    def test_a_refit_brings_back_most_of_what_pruning_cost_without_a_gradient_step(self, dataset):
        x = dataset.prepare(dataset.train.sample(256).images)
        found = refit(pruned_network(), trained_network(), x, kept=pruned_and_kept()[1]).network
        whole, before, after = (
            accuracy(network, dataset.test, dataset) for network in (trained_network(), pruned_network(), found)
        )
        assert after - before > 0.75 * (whole - before)

    def test_it_is_deterministic_and_gives_its_report(self, dataset):
        first, again = (
            recover(
                pruned_network(),
                trained_network(),
                dataset,
                RecoveryConfig(epochs=0),
                kept=pruned_and_kept()[1],
            )
            for _ in range(2)
        )
        assert all(torch.equal(first.network.tensors[n], again.network.tensors[n]) for n in first.network.tensors)
        stages, corrections = first.details["validation_accuracy"], first.details["corrections"]
        assert stages["least_squares_refit"] > stages["pruned"]
        assert (
            corrections["least_squares_refit"]["examples"] == 512 and corrections["least_squares_refit"]["layers"] > 3
        )

    def test_without_labels_the_better_of_the_corrections_is_kept(self, tmp_path):
        pictures, _, split = digits()
        np.savez(tmp_path / "unlabelled.npz", x=pictures, split=split)
        dataset = load_dataset(tmp_path / "unlabelled.npz")
        recovered = recover(
            pruned_network(), trained_network(), dataset, RecoveryConfig(epochs=0), kept=pruned_and_kept()[1], seed=0
        )
        errors = recovered.details["output_error"]
        assert recovered.details["method"] == min(errors, key=errors.get) == "least_squares_refit"
        target = predict(trained_network(), dataset.val.images, dataset)
        found = predict(recovered.network, dataset.val.images, dataset)
        assert float((found - target).norm() / target.norm()) == pytest.approx(errors["least_squares_refit"], abs=1e-5)

    def test_too_few_images_are_said_so(self, tmp_path):
        pictures, labels, _ = digits()
        np.savez(
            tmp_path / "few.npz", x=pictures[:30], y=labels[:30] % 2, split=["train"] * 12 + ["val"] * 9 + ["test"] * 9
        )
        dataset = load_dataset(tmp_path / "few.npz")
        recovered = recover(
            pruned_network(), trained_network(), dataset, RecoveryConfig(epochs=0), kept=pruned_and_kept()[1]
        )
        assert "16 images" in recovered.details["corrections"]["least_squares_refit"]["reason"]


def test_a_linear_layer_over_tokens_is_refitted():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(F.gelu(self.up(x)))

    torch.manual_seed(0)
    original = Network.from_module(Tokens(), {"x": (10, 6)})
    start = original.with_tensors({**original.tensors, "up.weight": original.tensors["up.weight"] * 1.5})
    found = refit(start, original, images(128, 10, 6), kept={})
    ((before, after),) = found.layers.values()
    assert after < 0.7 * before
