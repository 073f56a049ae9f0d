"""Random small CNNs × random keep sets: surgery is exact, and every predicted cost is the measured one."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.analysis import analyse, profile
from core.measure import independent_costs
from core.surgery import apply, verify
from tests.core.channel_networks import OptionABlock, export, random_keep


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn(self.conv(x)))


class Dense(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.grow = nn.Conv2d(channels, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(F.relu(self.bn(x)))], 1)


class Depthwise(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels)
        self.point = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.point(F.hardswish(self.depthwise(x)))


class Grouped(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.grouped(x))


class Transposed(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, 2 * channels, 2, 2, groups=groups)
        self.down = nn.Conv2d(self.up.out_channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Moved(nn.Module):
    """Channels listed, rolled, turned round and repeated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.silu(x[:, self.order].roll(1, 1).repeat(1, 2, 1, 1)).flip(1))


class Windows(nn.Module):
    """A convolution written as im2col and a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(9 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1).transpose(1, 2)
        return self.linear(patches).transpose(1, 2).reshape(x.shape)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 3, 1)
        self.excite = nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class SplitShuffle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, F.relu(self.conv(right))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels // 4, channels)
        self.gain = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.norm(x)) * self.gain


# Every block keeps the channel count a multiple of 4: name → (block, channels after).
BLOCKS = {
    "residual": lambda c: (Residual(c), c),
    "dense": lambda c: (Dense(c), c + 4),
    "depthwise": lambda c: (Depthwise(c), c),
    "grouped, few": lambda c: (Grouped(c, 2), c),
    "grouped, many": lambda c: (Grouped(c, c // 2), c),
    "transposed": lambda c: (Transposed(c, 1), c),
    "transposed, few groups": lambda c: (Transposed(c, 2), c),
    "transposed, many groups": lambda c: (Transposed(c, c), c),
    "moved": lambda c: (Moved(c), c),
    "windows": lambda c: (Windows(c), c),
    "squeeze-excite": lambda c: (SqueezeExcite(c), c),
    "split and shuffle": lambda c: (SplitShuffle(c), c),
    "group norm": lambda c: (Norm(c), c),
    "padded shortcut": lambda c: (OptionABlock(c, c + 4, 1), c + 4),
    "padded shortcut with stride": lambda c: (OptionABlock(c, c + 8, 2), c + 8),
    "max pool": lambda c: (nn.MaxPool2d(3, 2, 1), c),
}


class RandomCnn(nn.Module):
    def __init__(self, names: list[str], width: int, flatten: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        blocks, channels = [], width
        for name in names:
            block, channels = BLOCKS[name](channels)
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(2 if flatten else 1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * (4 if flatten else 1), 12), nn.ELU(), nn.Dropout(0.5), nn.Linear(12, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(F.relu(self.stem(x)))))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4),
    width=st.sampled_from([4, 8, 12]),
    flatten=st.booleans(),
    seed=st.integers(0, 1000),
    fraction=st.floats(0.1, 0.9),
)
def test_surgery_is_exact_and_costs_are_as_predicted(names, width, flatten, seed, fraction):
    torch.manual_seed(seed)
    network = export(RandomCnn(names, width, flatten), 3, 8, 8, seed=seed)
    analysis = analyse(network)
    assert analysis.faults == ()
    assert analysis.costs(analysis.full_widths) == profile(network).costs == independent_costs(network)
    keep = random_keep(analysis, np.random.default_rng(seed), fraction)
    pruned = apply(network, analysis, keep)
    result = verify(network, analysis, keep, pruned, seed=seed)
    assert result.passed, result
    assert result.max_relative_error < 1e-11
    costs = analysis.costs(analysis.widths(keep))
    assert costs == profile(pruned).costs == independent_costs(pruned)
