"""Every operator around which channels can be removed, and every one that needs them all: what stays free is worked
out by hand, surgery is exact, and costs are those of a watched run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.analysis import analyse, profile
from core.measure import independent_costs
from core.network import Network
from core.surgery import apply, verify
from tests.core.channel_networks import export, random_keep

PERMUTATION = [3, 1, 7, 5, 0, 2, 6, 4]


class Between(nn.Module):
    """conv (8 channels) → the body → conv. The body may own one layer."""

    def __init__(self, body: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer, self._body = layer, body
        with torch.no_grad():
            example = self._mapped(self.stem(torch.rand(2, 3, 6, 6)))
        self.head = nn.Conv2d(example.shape[1], 5, 1)

    def _mapped(self, x: Tensor) -> Tensor:
        return self._body(x) if self.layer is None else self._body(x, self.layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._mapped(self.stem(x)))


def free(network: Network) -> list[int]:
    """Sizes of the groups, after checking surgery and costs on two random choices."""
    analysis = analyse(network)
    assert analysis.faults == ()
    assert independent_costs(network) == profile(network).costs == analysis.costs(analysis.full_widths)
    for seed in range(2):
        keep = random_keep(analysis, np.random.default_rng(seed))
        pruned = apply(network, analysis, keep)
        result = verify(network, analysis, keep, pruned)
        assert result.passed, result
        assert result.max_relative_error < 1e-12
        assert independent_costs(pruned) == profile(pruned).costs == analysis.costs(analysis.widths(keep))
    return sorted(len(group.components) for group in analysis.groups)


def _volume(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x.unsqueeze(2)).flatten(2, 3)


def _sequence(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x.flatten(2)).unsqueeze(3)


# layer → sizes of the groups that are left free.
CONVOLUTIONS: dict[str, tuple[Callable[..., Tensor], Callable[[], nn.Module], list[int]]] = {
    "1d": (_sequence, lambda: nn.Sequential(nn.Conv1d(8, 10, 3), nn.BatchNorm1d(10)), [8, 10]),
    "1d, few groups": (_sequence, lambda: nn.Conv1d(8, 10, 3, groups=2), [4, 5]),
    "3d": (_volume, lambda: nn.Sequential(nn.Conv3d(8, 10, 3, padding=1), nn.BatchNorm3d(10)), [8, 10]),
    "3d, depthwise": (_volume, lambda: nn.Conv3d(8, 16, 3, padding=1, groups=8), [8]),
    "functional, one kernel expanded to every channel": (
        lambda x, layer: F.conv2d(x, layer.weight.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]),
        lambda: nn.Conv2d(1, 1, 3, bias=False),
        [8],
    ),
    "same padding": (lambda x, layer: layer(x), lambda: nn.Conv2d(8, 6, 3, padding="same"), [6, 8]),
    "reflected padding": (lambda x, layer: layer(x), lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), [6, 8]),
    "circular padding": (lambda x, layer: layer(x), lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), [6, 8]),
    "transposed": (lambda x, layer: layer(x), lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), [6, 8]),
    "transposed, few groups": (lambda x, layer: layer(x), lambda: nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), [4, 6]),
    "transposed, many groups": (lambda x, layer: layer(x), lambda: nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4), [4]),
    "transposed, depthwise": (lambda x, layer: layer(x), lambda: nn.ConvTranspose2d(8, 8, 3, stride=2, groups=8), [8]),
    "transposed, depthwise with multiplier": (
        lambda x, layer: layer(x),
        lambda: nn.ConvTranspose2d(8, 16, 3, groups=8, bias=False),
        [8],
    ),
    "transposed 1d, few groups": (_sequence, lambda: nn.ConvTranspose1d(8, 6, 2, stride=2, groups=2), [3, 4]),
    "transposed 1d, many groups": (_sequence, lambda: nn.ConvTranspose1d(8, 16, 2, groups=8), [8]),
    "transposed 3d, few groups": (_volume, lambda: nn.ConvTranspose3d(8, 6, 2, stride=2, groups=2), [3, 4]),
    "transposed 3d, depthwise": (_volume, lambda: nn.ConvTranspose3d(8, 8, 2, stride=2, groups=8), [8]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    torch.manual_seed(0)
    body, layer, groups = CONVOLUTIONS[name]
    assert free(export(Between(body, layer()), 3, 6, 6)) == groups


def _written(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4] = x[:, 4:]
    y[:, 4:] = torch.relu(x[:, :4])
    return y


def _unpooled(x: Tensor) -> Tensor:
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(torch.relu(y), indices, 2)


def _shifted_in_time(x: Tensor) -> Tensor:
    frames = x.view(-1, 1, 8, 6, 6)
    return torch.cat([frames[:, :, 4:], frames[:, :, :4]], 2).view(-1, 8, 6, 6)


BODIES: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "index: permutation": (lambda x: x[:, PERMUTATION], [8]),
    # Five channels are read once, channel 3 twice, and the rest by nobody.
    "index: some channels": (lambda x: x[:, [1, 3, 3, 6]], [1, 2, 5]),
    "index: from the end": (lambda x: x[:, [-1, 0, -3]], [3, 5]),
    "index: channels and rows": (lambda x: x[:, PERMUTATION][:, :, [0, 2]], [8]),
    "index: pixels": (lambda x: x[:, :, torch.tensor([[0], [2]]), torch.tensor([1, 2])], [8]),
    "index_select": (lambda x: x.index_select(1, torch.tensor(PERMUTATION)), [8]),
    "gather": (lambda x: x.gather(1, torch.zeros(x.shape[0], 8, 6, 6, dtype=torch.int64)), []),
    "scatter": (lambda x: x.scatter(1, torch.zeros(x.shape[0], 1, 6, 6, dtype=torch.int64), 1.0), []),
    "im2col": (lambda x: F.unfold(x, 3, padding=1).unflatten(2, (6, 6)), [8]),
    "im2col and back": (lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1), [8]),
    "windows of pixels": (lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).mean(4), [8]),
    "windows of channels": (lambda x: x.unfold(1, 2, 2).mean(4), []),
    "repeat of channels": (lambda x: x.repeat(1, 2, 1, 1), [8]),
    "repeat of pixels": (lambda x: x.repeat(1, 1, 2, 1), [8]),
    "repeat along a new axis": (lambda x: x.repeat(2, 1, 1, 1, 1).sum(0), [8]),
    "repeat of a single channel": (lambda x: x * x[:, :1].mean((2, 3), keepdim=True).repeat(1, 8, 1, 1), [7]),
    "tile": (lambda x: x.tile(1, 3, 1, 1), [8]),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), [8]),
    "repeat_interleave, unequal": (lambda x: x.repeat_interleave(torch.arange(1, 9), 1), []),
    "roll of channels": (lambda x: x.roll(3, 1), [8]),
    "roll of channels backwards": (lambda x: x.roll(-10, 1) * 2, [8]),
    "roll of pixels": (lambda x: x.roll((1, -2), (2, 3)), [8]),
    "flip of channels": (lambda x: x.flip(1), [8]),
    # Channel i meets channel 7 − i.
    "flip of channels, added": (lambda x: x + x.flip(1), [4]),
    "every channel selected": (lambda x: torch.stack([x[:, i] for i in range(8)], 1), []),
    "unbind": (lambda x: torch.stack(x.unbind(1)[2:6], 1), []),
    "slices with a step": (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), [4]),
    "slice with a step that does not divide": (lambda x: x[:, 1:8:3], []),
    "slice_scatter": (lambda x: torch.slice_scatter(x, torch.tanh(x[:, 2:5]), 1, 2, 5), [3, 5]),
    "slice_scatter of pixels": (lambda x: torch.slice_scatter(x, torch.tanh(x[:, :, 2:5]), 2, 2, 5), [8]),
    "slice_scatter with a step": (lambda x: torch.slice_scatter(x, torch.tanh(x[:, :4]), 1, 0, 8, 2), []),
    "select_scatter": (lambda x: torch.select_scatter(x, torch.tanh(x[:, 2]), 1, 2), []),
    "select_scatter of pixels": (lambda x: torch.select_scatter(x, torch.tanh(x[:, :, 2]), 2, 2), [8]),
    "halves written over each other": (_written, [4]),
    "temporal shift": (_shifted_in_time, [4, 4]),
    "reflected channels": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect"), []),
    "replicated channels": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate"), []),
    "circular channels": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="circular"), []),
    "circular pixels": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), [8]),
    # Cropped channels reach nobody but the stem: a group of their own.
    "cropped channels": (lambda x: F.pad(x, (0, 0, 0, 0, -2, 0)), [2, 6]),
    "cropped and padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, -2, 3)), [2, 3, 6]),
    "max_unpool2d": (_unpooled, [8]),
    "adaptive_max_pool2d with indices": (lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0], [8]),
    "channel_shuffle of two": (lambda x: F.channel_shuffle(x, 2), [4]),
    "channel_shuffle of four": (lambda x: F.channel_shuffle(x, 4), [4]),
    "reshape_as": (lambda x: x.flatten(1).reshape_as(x), [8]),
    "view_as": (lambda x: x.flatten(2).view_as(torch.tanh(x)), [8]),
    "mT": (lambda x: x.mT, [8]),
    "upsampled to a size": (lambda x: F.interpolate(x, size=(9, 9), mode="bicubic"), [8]),
    "upsampled in three dimensions": (
        lambda x: F.interpolate(x.unsqueeze(2), scale_factor=2, mode="trilinear").flatten(2, 3),
        [8],
    ),
    "pixel_unshuffle and shuffle": (lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), [8]),
    "glu": (lambda x: F.glu(x, 1), [4]),
}


@pytest.mark.parametrize("name", BODIES)
def test_operator(name):
    torch.manual_seed(0)
    body, groups = BODIES[name]
    assert free(export(Between(body), 3, 6, 6)) == groups


class TiedAutoencoder(nn.Module):
    """Each linear weight is read a second time, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Linear(27, 12)
        self.inner = nn.Linear(12, 6)
        self.bias = nn.Parameter(torch.rand(27))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.inner(F.relu(self.outer(x.flatten(1)))))
        return F.linear(F.relu(F.linear(code, self.inner.weight.t())), self.outer.weight.t(), self.bias).view(
            -1, 3, 3, 3
        )


class TiedConvolutions(nn.Module):
    """Each filter bank is read a second time by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.inner = nn.Parameter(torch.randn(12, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(F.conv2d(F.relu(F.conv2d(x, self.outer, padding=1)), self.inner, padding=1))
        y = F.relu(F.conv_transpose2d(code, self.inner, padding=1))
        return F.conv_transpose2d(y, self.outer, padding=1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = self._block(3, 8), self._block(8, 16), self._block(16, 24)
        self.up2, self.up1 = nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge2, self.merge1 = self._block(32, 16), self._block(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.down3(F.max_pool2d(b, 2))
        b = self.merge2(torch.cat([b, self.up2(c)], 1))
        return self.head(self.merge1(torch.cat([a, self.up1(b)], 1)))


class SuperResolution(nn.Module):
    """Residual body, pixel-shuffle by 4 in two steps, bicubic shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.Conv2d(16, 64, 3, padding=1)
        self.last = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = F.pixel_shuffle(self.up(y + self.body(F.relu(y))), 2)
        return F.pixel_shuffle(self.last(y), 2) + F.interpolate(x, scale_factor=4, mode="bicubic")


NETWORKS = {
    "tied autoencoder": (TiedAutoencoder, (3, 3, 3), [6, 12]),
    "tied convolutions": (TiedConvolutions, (3, 6, 6), [8, 12]),
    "U-Net": (UNet, (3, 8, 8), [8, 8, 8, 16, 16, 16, 24]),
    "super-resolution": (SuperResolution, (3, 6, 6), [16, 16]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    torch.manual_seed(0)
    build, shape, groups = NETWORKS[name]
    assert free(export(build(), *shape)) == groups


def test_a_list_of_channels_that_is_used_for_other_things_too_freezes_them():
    class Used(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 2, 1)
            self.register_buffer("order", torch.tensor(PERMUTATION))

        def forward(self, x):
            return self.head(self.stem(x)[:, self.order] * self.order.view(8, 1, 1))

    network = export(Used(), 3, 6, 6)
    assert free(network) == []
    assert any("used for other things" in one.reason for one in analyse(network).frozen)


def test_a_list_of_channels_is_cut_and_renumbered():
    class Ordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 2, 1)
            self.register_buffer("order", torch.tensor(PERMUTATION))

        def forward(self, x):
            return self.head(self.stem(x)[:, self.order])

    network = export(Ordered(), 3, 6, 6)
    analysis = analyse(network)
    (stem,) = [one for one in analysis.slices if (one.tensor, one.axis) == ("stem.weight", 0)]
    keep = np.ones(analysis.components, dtype=bool)
    keep[stem.component[[1, 4]]] = False
    pruned = apply(network, analysis, keep)
    # 3 1 7 5 0 2 6 4 without 1 and 4, then counted over 0 2 3 5 6 7.
    assert pruned.tensors["order"].tolist() == [2, 5, 3, 0, 1, 4]
