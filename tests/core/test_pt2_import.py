"""`.pt2` files as torch.export.save writes them come in as the networks that they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from core.analysis import profile
from core.deliver.onnx_file import write_onnx
from core.errors import EngineError
from core.intake import file_format, load_network
from core.network import Network
from tests.core.pt2_cases import Small, saved


class Everything(nn.Module):
    """Dictionary outputs, a scope, constants, a list of results, sizes that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8 * 4, 5)
        self.register_buffer("gain", torch.linspace(0.5, 2.0, 8), persistent=False)

    def forward(self, image: torch.Tensor) -> dict[str, object]:
        with torch.no_grad():
            features = self.stem(image)
        first, second = features.chunk(2, dim=1)
        best, _ = features.max(1)
        scaled = features.mean((2, 3)) * self.gain + torch.arange(8.0)
        pooled = nn.functional.adaptive_avg_pool2d(features, 2).flatten(1)
        larger = nn.functional.interpolate(first + second, scale_factor=2)
        return {"scores": self.head(pooled), "maps": [larger, best], "table": scaled.view(image.shape[0] * 2, -1)}


def load(path: Path, **given) -> Network:
    return load_network(path, architecture=None, **given)


def assert_runs_like(network: Network, module: nn.Module, batch: int = 3) -> None:
    inputs = network.random_inputs(batch=batch, seed=0)
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(module(*inputs))
    for got, want in zip(network.run(*inputs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return Everything().eval()


def test_an_exported_program_comes_in_under_its_own_names(module, tmp_path):
    path = saved(module, tmp_path / "model.pt2")
    network = load(path)
    assert file_format(path) == "pt2"
    assert [spec.name for spec in network.inputs] == ["image"] and network.inputs[0].shape == (3, 8, 8)
    assert [spec.name for spec in network.outputs] == ["scores", "maps_0", "maps_1", "table"]
    assert set(module.state_dict()) <= set(network.tensors)
    assert network.parameter_names == {name for name, _ in module.named_parameters()}
    assert {node.meta["path"] for node in network.graph.nodes} >= {"stem.0", "stem.1", "head"}
    assert_runs_like(network, module)


def test_it_is_the_network_that_the_module_gives_directly(module, tmp_path):
    network = load(saved(module, tmp_path / "model.pt2"))
    direct = Network.from_module(module, {"image": (3, 8, 8)})
    assert profile(network).costs == profile(direct).costs
    assert [layer.name for layer in profile(network).layers] == [layer.name for layer in profile(direct).layers]
    calls = [[node.target for node in one.graph.nodes if node.op == "call_function"] for one in (network, direct)]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_number_of_images_that_is_written_into_the_file_becomes_the_batch(batch, module, tmp_path):
    class Reshaped(Everything):
        def forward(self, image):
            features = self.stem(image)
            groups = features.view(image.shape[0], 2, 4, 64).transpose(1, 2).reshape(image.shape[0], 8, 8, 8)
            bias = torch.zeros(image.shape[0], 8, 1, 1).expand(image.shape[0], 8, 8, 8)
            return self.head(nn.functional.adaptive_avg_pool2d(groups + bias, 2).view(image.shape[0], -1))

    one = Reshaped().eval()
    network = load(saved(one, tmp_path / "model.pt2", batch=batch))
    assert network.interface.batch_size == (1 if batch == 1 else None)
    assert_runs_like(network, one, batch=3)
    assert_runs_like(network, one, batch=1)


def test_a_program_whose_images_depend_on_each_other_is_refused_where_the_batch_is_fixed(tmp_path):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image):
            features = self.conv(image)
            return features - features.mean(0, keepdim=True)

    with pytest.raises(EngineError, match="exactly 2 image") as caught:
        load(saved(Mixing(), tmp_path / "model.pt2", batch=2))
    assert caught.value.code == "invalid_model" and "dynamic batch" in caught.value.message


def test_open_sizes_take_the_given_shape_or_that_of_the_export(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    path = saved(module, tmp_path / "model.pt2", spatial=True)
    assert load(path).inputs[0].shape == (3, 8, 8)
    assert load(path, input_shape=(3, 20, 8)).inputs[0].shape == (3, 20, 8)
    for wrong in ((3, 20, 9), (4, 8, 8), {"nobody": (3, 8, 8)}):
        with pytest.raises(EngineError) as caught:
            load(path, input_shape=wrong)
        assert caught.value.code == "shape_mismatch"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_another_precision_become_float32(dtype, tmp_path):
    class Precise(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image):
            return self.conv(image.to(self.conv.weight.dtype)) + torch.zeros(4, 1, 1, dtype=self.conv.weight.dtype)

    module = Precise().to(dtype)
    network = load(saved(module, tmp_path / "model.pt2", dtype=dtype))
    assert {spec.dtype for spec in (*network.inputs, *network.outputs)} == {torch.float32}
    assert_runs_like(network, module.float())


def test_constants_of_another_precision_become_float32_with_the_weights(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.scale = torch.linspace(0.5, 2, 3, dtype=torch.float64).view(3, 1, 1)

        def forward(self, image):
            return self.conv(image * self.scale)

    module = Scaled().double()
    network = load(saved(module, tmp_path / "model.pt2", dtype=torch.float64))
    assert {tensor.dtype for tensor in network.tensors.values()} == {torch.float32}
    module.scale = module.scale.float()
    assert_runs_like(network, module.float())


def test_a_number_that_follows_the_batch_is_no_literal_where_few_images_give_the_same(tmp_path):
    module = Small(lambda features: features + features.shape[0] // 4)
    assert_runs_like(load(saved(module, tmp_path / "model.pt2")), module, batch=8)


def test_every_output_has_a_name_of_its_own(tmp_path):
    module = Small(lambda features: ({"output_1": features.mean((2, 3))}, features.amax((2, 3))))
    network = load(saved(module, tmp_path / "model.pt2"))
    assert [spec.name for spec in network.outputs] == ["output_1", "output_1_"]


def test_an_output_is_not_called_like_an_input(tmp_path):
    module = Small(lambda features: {"image": features, "mean": features.mean((2, 3))})
    network = load(saved(module, tmp_path / "model.pt2"))
    assert [spec.name for spec in network.outputs] == ["output_0", "mean"]
    write_onnx(network, tmp_path / "model.onnx")


@pytest.mark.parametrize("kind", ["instance norm", "attention"])
def test_what_is_random_or_changes_statistics_when_it_runs_is_refused_as_training(kind, tmp_path):
    class Active(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.InstanceNorm2d(4, track_running_stats=True)

        def forward(self, image):
            features = self.conv(image)
            if kind == "instance norm":
                return self.norm(features)
            tokens = features.flatten(2)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.5)

    path = saved(Active(), tmp_path / "model.pt2", training=True)
    with pytest.raises(EngineError, match=r"is active: .* training mode\. Call model\.eval") as caught:
        load(path)
    assert caught.value.code == "invalid_model"


def test_tied_weights_stay_one_tensor(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    module[2].weight = module[0].weight
    network = load(saved(module, tmp_path / "model.pt2"))
    assert network.tensors["0.weight"] is network.tensors["2.weight"]
    assert_runs_like(network, module)


def test_an_architecture_is_not_needed_and_not_taken(module, tmp_path):
    path = saved(module, tmp_path / "model.pt2")
    with pytest.raises(EngineError, match=r"A \.pt2 file says itself") as caught:
        load_network(path, architecture="cifar_resnet20")
    assert caught.value.code == "architecture_mismatch"
