"""Every score against a float64 loop over the slices of each component, on networks with coupled channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.analysis import ChannelAnalysis, analyse
from core.errors import EngineError
from core.methods import get_method
from core.network import Network
from core.recovery.dataset import ImageDataset, Split


class Coupled(nn.Module):
    """Residual sum, concatenation, depthwise, a layer without batch-norm, and a flatten that repeats labels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.body_norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.side = nn.Conv2d(6, 5, 1)
        self.hidden = nn.Linear(11 * 4, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        stem = torch.relu(self.stem_norm(self.stem(x)))
        x = stem + self.body_norm(self.body(stem))
        x = torch.cat([self.depthwise(x), self.side(x)], 1)
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def coupled() -> tuple[Network, ChannelAnalysis]:
    torch.manual_seed(0)
    module = Coupled()
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.weight.uniform_(-1, 2)
                one.running_mean.normal_()
    network = Network.from_module(module, {"input": (3, 8, 8)})
    return network, analyse(network)


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((70, 3, 8, 8), generator=generator)
    labels = torch.randint(0, 4, (70,), generator=generator)
    splits = [Split(images[rows], labels[rows]) for rows in (slice(0, 50), slice(50, 60), slice(60, 70))]
    return ImageDataset("npz", 4, *splits, normalization=None, scale=255.0)


def unlabelled(dataset: ImageDataset) -> ImageDataset:
    splits = [Split(one.images, None) for one in (dataset.train, dataset.val, dataset.test)]
    return ImageDataset("npz", None, *splits, normalization=None, scale=255.0)


def slices_of(network: Network, analysis: ChannelAnalysis, component: int) -> Iterator[tuple[str, int, list[Tensor]]]:
    """(tensor name, axis, slices) of everything that belongs to a component, in float64."""
    for slices in analysis.slices:
        tensor = network.tensors[slices.tensor]
        found = [tensor.select(slices.axis, i).double() for i, c in enumerate(slices.component) if c == component]
        if found:
            yield slices.tensor, slices.axis, found


def scores_by(name: str, network: Network, analysis: ChannelAnalysis, options=None, dataset=None, seed=0) -> np.ndarray:
    method = get_method(name)
    return method.scores(network, analysis, method.config(options or {}), seed, dataset)


def prunable(analysis: ChannelAnalysis) -> np.ndarray:
    return np.concatenate([group.components for group in analysis.groups])


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_is_the_norm_over_all_slices_of_matrices(coupled, norm):
    network, analysis = coupled
    expected = []
    for component in prunable(analysis):
        total = 0.0
        for name, _, found in slices_of(network, analysis, component):
            if network.tensors[name].ndim >= 2:
                total += sum(float((one.abs() ** norm).sum()) for one in found)
        expected.append(total ** (1 / norm))
    found = scores_by("magnitude", network, analysis, {"norm": norm})
    np.testing.assert_allclose(found[prunable(analysis)], expected, rtol=1e-6)


def test_batch_norm_scale_is_the_norm_of_the_scales_and_magnitude_where_there_are_none(coupled):
    network, analysis = coupled
    found, magnitude = (scores_by(name, network, analysis) for name in ("bn_scale", "magnitude"))
    scaled = 0
    for group in analysis.groups:
        for component in group.components:
            gammas = [
                float(one)
                for name, _, slices in slices_of(network, analysis, component)
                if name in ("stem_norm.weight", "body_norm.weight")
                for one in slices
            ]
            scaled += bool(gammas)
            expected = np.sqrt(sum(gamma**2 for gamma in gammas)) if gammas else magnitude[component]
            assert found[component] == pytest.approx(expected, rel=1e-12)
    assert scaled == 6


def test_geometric_median_is_the_sum_of_distances_within_the_group(coupled):
    network, analysis = coupled
    found = scores_by("geometric_median", network, analysis)
    for group in analysis.groups:
        filters = []
        for component in group.components:
            parts = [
                one.flatten()
                for name, _, slices in slices_of(network, analysis, component)
                if network.tensors[name].ndim >= 2
                for one in slices
            ]
            filters.append(torch.cat(parts))
        for component, own in zip(group.components, filters, strict=True):
            expected = sum(float((own - other).norm()) for other in filters)
            assert found[component] == pytest.approx(expected, rel=1e-9)


def test_geometric_median_does_not_see_the_norm_but_how_replaceable_a_filter_is():
    torch.manual_seed(0)
    layer, head = nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 3, 1)
    with torch.no_grad():
        # Filters 0 and 1 are equal and large, 2 and 3 are small and far from everything.
        layer.weight.copy_(torch.tensor([[9.0, 9.0], [9.0, 9.0], [8.0, -2.0], [-2.0, 8.0]]).view(4, 2, 1, 1))
        head.weight.fill_(1.0)
    network = Network.from_module(nn.Sequential(layer, head), {"input": (2, 4, 4)})
    analysis = analyse(network)
    (group,) = analysis.groups
    found = scores_by("geometric_median", network, analysis)
    filters = network.tensors["0.weight"].flatten(1)
    slices = next(one for one in analysis.slices if one.tensor == "0.weight" and one.axis == 0)
    by_filter = found[slices.component]
    assert by_filter[0] == pytest.approx(by_filter[1])
    assert max(by_filter[:2]) < min(by_filter[2:])
    assert float(filters[:2].norm()) > float(filters[2:].norm())
    assert len(group.components) == 4


def test_taylor_with_labels_is_the_mean_square_of_gradient_times_weight(coupled, dataset):
    network, analysis = coupled
    found = scores_by("taylor", network, analysis, {"examples": 50}, dataset)
    expected = np.zeros(analysis.components)
    for start in (0, 32):
        images, labels = dataset.train.images[start : start + 32], dataset.train.labels[start : start + 32]
        gradients = _gradients(network, images, lambda out, labels=labels: nn.functional.cross_entropy(out, labels))
        expected += _squares(network, analysis, gradients) / 2
    np.testing.assert_allclose(found[prunable(analysis)], expected[prunable(analysis)], rtol=2e-3, atol=1e-12)
    assert (found[prunable(analysis)] > 0).any()


def test_taylor_without_labels_estimates_how_much_the_outputs_move(coupled, dataset):
    network, analysis = coupled
    found = np.mean(
        [scores_by("taylor", network, analysis, {"examples": 32}, unlabelled(dataset), seed) for seed in range(200)],
        axis=0,
    )
    images = dataset.train.sample(32).images
    expected = np.zeros(analysis.components)
    for example in range(32):
        for output in range(4):
            rows = slice(example, example + 1)
            gradients = _gradients(network, images[rows], lambda out, output=output: out[0, output])
            expected += _squares(network, analysis, gradients) / 32
    # 200 draws of a χ²-like variable.
    np.testing.assert_allclose(found[prunable(analysis)], expected[prunable(analysis)], rtol=0.5)
    assert np.corrcoef(found[prunable(analysis)], expected[prunable(analysis)])[0, 1] > 0.98


def _gradients(network: Network, images: Tensor, loss) -> dict[str, Tensor]:
    module = network.to(torch.float64).module()
    parameters = dict(module.named_parameters())
    for one in parameters.values():
        one.requires_grad_(True)
    found = torch.autograd.grad(loss(module(images.double())[0]), list(parameters.values()), allow_unused=True)
    return {name: one for name, one in zip(parameters, found, strict=True) if one is not None}


def _squares(network: Network, analysis: ChannelAnalysis, gradients: dict[str, Tensor]) -> np.ndarray:
    total = np.zeros(analysis.components)
    for slices in analysis.slices:
        if slices.tensor in gradients:
            product = gradients[slices.tensor] * network.tensors[slices.tensor].double()
            for component in np.unique(slices.component[slices.component >= 0]):
                own = [product.select(slices.axis, i).sum() for i in np.flatnonzero(slices.component == component)]
                total[component] += float(sum(own)) ** 2
    return total


def test_taylor_without_images_is_refused_with_what_to_give(coupled):
    network, analysis = coupled
    with pytest.raises(EngineError, match="Give a dataset") as refusal:
        scores_by("taylor", network, analysis)
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", "/dataset")


def test_random_is_drawn_by_the_seed(coupled):
    network, analysis = coupled
    first, again, other = (scores_by("random", network, analysis, seed=seed) for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).all()


@pytest.mark.parametrize(
    "name", ["auto", "magnitude", "bn_scale", "complexity", "geometric_median", "random", "taylor"]
)
def test_scores_are_finite_not_negative_and_the_same_twice(coupled, dataset, name):
    network, analysis = coupled
    first, again = (scores_by(name, network, analysis, dataset=dataset, seed=5) for _ in range(2))
    assert first.shape == (analysis.components,) and first.dtype == np.float64
    assert np.isfinite(first).all() and (first >= 0).all()
    np.testing.assert_array_equal(first, again)
    assert get_method(name).info().paper.startswith("arXiv:")


class Tied(nn.Module):
    """One matrix under two names: both layers read it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6, bias=False)
        self.b = nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.b(torch.relu(self.a(self.stem(x)))))


def test_a_tensor_under_two_names_counts_once():
    torch.manual_seed(0)
    network = Network.from_module(Tied(), {"input": (4,)})
    analysis = analyse(network)
    found = scores_by("magnitude", network, analysis, {"norm": 1})
    total = sum(network.tensors[name].double().abs().sum() for name in ("a.weight", "stem.weight", "head.weight"))
    # The matrix lies along the same components with both of its axes.
    twice = network.tensors["a.weight"].double().abs().sum()
    assert found.sum() == pytest.approx(float(total + twice), rel=1e-6)
