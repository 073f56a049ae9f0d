"""Rounding by which layers make up for each other, and what an interrupted encoding goes on from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.budget import Budget, Cap
from core.checkpoint import Checkpoint, Saved
from core.encoding.compensation import compensated
from core.encoding.kernels import find_kernels, grouped
from core.encoding.options import EncodingOptions
from core.encoding.saved import packed, unpacked
from core.encoding.sharing import choices_at, rounded
from core.engine import CompressionRequest, compress
from core.network import Network
from tests.core.recovery_cases import save_digits, trained_network


def network(seed: int = 0) -> Network:
    """Convolutions with and without groups and bias, a batch-norm, a residual sum and a matrix."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.head = nn.Linear(8 * 36, 7)

        def forward(self, x):
            x = torch.relu(self.norm(self.first(x)))
            x = x + self.depthwise(torch.relu(self.grouped(x)))
            return self.head(x.flatten(1))

    torch.manual_seed(seed)
    return Network.from_module(Net(), {"input": (3, 6, 6)})


def images(count: int, seed: int = 1) -> torch.Tensor:
    """Smooth, so that neighbouring inputs are correlated as those of photographs are."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 3, stride=1)


def error(found: Network, wanted: Network) -> float:
    """On images that nothing was fitted to."""
    inputs = images(64, seed=2)
    return float((found.run(inputs)[0] - wanted.run(inputs)[0]).norm() / wanted.run(inputs)[0].norm())


@pytest.mark.parametrize("quantizer", ["cws", "uq", "ecsq"])
@pytest.mark.parametrize("prune", [0.0, 40.0])
@pytest.mark.parametrize("unified", [False, True])
def test_layers_that_make_up_for_each_other_err_less_on_the_same_values(quantizer, prune, unified):
    net = network()
    groups = grouped(find_kernels(net, prune), unified=unified)
    choices = choices_at(groups, EncodingOptions(quantizer, 5, prune=prune, unified=unified))
    alone, together = rounded(net, choices, 0), compensated(net, images(256), choices, 0)
    assert error(together.network, net) < 0.75 * error(alone.network, net)
    for group, levels in choices:
        for kernel in group.kernels:
            tensor = together.tensors[kernel.name]
            np.testing.assert_array_equal(tensor.values(), together.network.tensors[kernel.name].numpy())
            assert set(tensor.codebook) <= {*levels.codebook.astype(np.float32), np.float32(0)}
            assert (tensor.values()[~kernel.survivors] == 0).all()
    again = compensated(net, images(256), choices, 0)
    assert all(torch.equal(t, again.network.tensors[name]) for name, t in together.network.tensors.items())


def test_values_that_fall_by_chance_and_kernels_that_two_layers_read_are_rounded_alone():
    net = network()
    groups = grouped(find_kernels(net, 0), unified=False)
    by_chance = choices_at(groups, EncodingOptions("pws", 5))
    alone, together = rounded(net, by_chance, 3), compensated(net, images(32), by_chance, 3)
    for name, tensor in alone.tensors.items():
        np.testing.assert_array_equal(tensor.indices, together.tensors[name].indices)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.shared = nn.Linear(9, 9), nn.Linear(9, 9)

        def forward(self, x):
            return self.shared(torch.relu(self.shared(self.own(x))))

    twice = Network.from_module(Twice(), {"input": (9,)})
    choices = choices_at(grouped(find_kernels(twice, 0), unified=False), EncodingOptions("cws", 4))
    inputs = torch.randn(200, 9) @ torch.randn(9, 9)
    alone, together = rounded(twice, choices, 0), compensated(twice, inputs, choices, 0)
    np.testing.assert_array_equal(alone.tensors["shared.weight"].indices, together.tensors["shared.weight"].indices)
    assert not (alone.tensors["own.weight"].indices == together.tensors["own.weight"].indices).all()


def test_inputs_that_are_never_there_leave_a_layer_finite():
    net = network()
    choices = choices_at(grouped(find_kernels(net, 0), unified=False), EncodingOptions("uq", 5))
    found = compensated(net, torch.zeros(20, 3, 6, 6), choices, 0)
    assert all(bool(t.isfinite().all()) for t in found.network.tensors.values() if t.is_floating_point())


def test_shared_values_come_back_from_a_checkpoint_as_they_were():
    net = network()
    options = EncodingOptions("cws", 5, prune=30.0, unified=True)
    choices = choices_at(grouped(find_kernels(net, 30.0), unified=True), options)
    before = compensated(net, images(64), choices, 0)
    values, arrays = packed(net, before)
    assert {name for name in arrays if name.startswith("other/")} == {
        f"other/{name}.bias" for name in ("grouped", "depthwise", "head")
    }
    after = unpacked(net, values, arrays)
    assert len({id(t.codebook) for t in after.tensors.values()}) == 2
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(tensor.indices, after.tensors[name].indices)
        assert after.tensors[name].indices.dtype == tensor.indices.dtype and after.tensors[name].zero == tensor.zero
    for name, value in before.network.tensors.items():
        assert torch.equal(value, after.network.tensors[name])


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def request_with_data(tmp_path_factory) -> CompressionRequest:
    folder = tmp_path_factory.mktemp("resumed")
    net = trained_network()
    path = folder / "model.safetensors"

    save_file({name: t.contiguous() for name, t in net.tensors.items()}, path)
    return CompressionRequest(
        path,
        Budget((Cap("size", max_ratio=0.2),)),
        architecture="cifar_resnet",
        architecture_args={"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10},
        input_shape=(1, 8, 8),
        dataset_path=save_digits(folder),
        encoding={"quantizer": "ecsq", "epochs": 1},
        outputs=("pwt",),
    )


@pytest.fixture(scope="module")
def whole(request_with_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return compress(request_with_data, folder)["encoding"], (folder / "model.pwt").read_bytes()


@pytest.mark.parametrize("stopped_at", ["shared", 3])
def test_an_encoding_goes_on_where_it_was_interrupted_and_ends_alike(request_with_data, whole, tmp_path, stopped_at):

    class Interrupted(Checkpoint):
        """Its process dies behind the saving of a finished step, or of so many steps of training."""

        def finish(self, step: str, result: Saved) -> None:
            super().finish(step, result)
            if step == f"encode_0/{stopped_at}":
                raise Killed

        def save(self, step: str, state: Saved) -> None:
            super().save(step, state)
            if state.values["step"] == stopped_at:
                raise Killed

    path = tmp_path / "run.checkpoint"
    with pytest.raises(Killed):
        compress(request_with_data, tmp_path / "first", checkpoint=Interrupted(path, "same", interval_s=0))
    left = Checkpoint(path, "same")
    assert left.left_at == (("encode_0/shared", None) if stopped_at == "shared" else ("encode_0/fine_tuning", 3))
    told: list[str] = []
    resumed = compress(
        request_with_data, tmp_path / "second", lambda event: told.append(event.message or ""), checkpoint=left
    )
    assert not any("Allocating" in message for message in told)
    assert (resumed["encoding"], (tmp_path / "second" / "model.pwt").read_bytes()) == whole
