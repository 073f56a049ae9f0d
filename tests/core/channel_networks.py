"""Small networks for the tests of analysis and surgery, and helpers that prune them at random."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core.analysis import ChannelAnalysis
from core.network import Network


def export(module: nn.Module, *shape: int, seed: int = 0) -> Network:
    """The network of `module` with statistics and gains like a trained one's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.3, 0.3, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.uniform_(-0.5, 0.5, generator=generator)
    return Network.from_module(module, {"input": shape})


def random_keep(analysis: ChannelAnalysis, rng: np.random.Generator, fraction: float = 0.5) -> np.ndarray:
    """Keep about `fraction` of the prunable components, any of them, without emptying a layer."""
    keep = np.ones(analysis.components, dtype=bool)
    for group in analysis.groups:
        keep[group.components] = rng.random(len(group.components)) < fraction
    for layer in analysis.layers:
        groups = [analysis.groups[group] for group, _ in layer.terms]
        if layer.fixed == 0 and not any(keep[group.components].any() for group in groups):
            group = groups[rng.integers(len(groups))]
            keep[rng.choice(group.components)] = True
    return keep


def counted_macs(network: Network) -> int:
    """MACs of one image by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter:
        network.run(*network.random_inputs(1, 0))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


class OptionABlock(nn.Module):
    """Residual block whose shortcut subsamples and pads zero channels in front and behind."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.front = stride, (out - channels) // 2
        self.back = out - channels - self.front

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.front or self.back:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.back), "constant", 0)
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """He et al.'s CIFAR network: 6n+2 layers, widths w, 2w, 4w."""

    def __init__(self, blocks: int = 1, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, layers = width, []
        for stage in range(3):
            for block in range(blocks):
                out = width * 2**stage
                layers.append(OptionABlock(channels, out, 2 if stage and block == 0 else 1))
                channels = out
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(F.relu(self.bn1(self.conv1(x))))
        y = F.avg_pool2d(y, y.shape[3])
        return self.linear(y.view(y.shape[0], -1))


class Vgg(nn.Module):
    """Plain stack with max-pooling, a flatten of H × W > 1 and dropout between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(3),
        )
        self.classifier = nn.Sequential(nn.Linear(12 * 9, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class InvertedResidual(nn.Module):
    """MobileNet-V3 style: expand, depthwise, squeeze-and-excitation, project, add; multiplier 2 at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand = nn.Conv2d(8, 24, 1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.squeeze = nn.Conv2d(24, 6, 1)
        self.excite = nn.Conv2d(6, 24, 1)
        self.project = nn.Conv2d(24, 8, 1)
        self.multiply = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.relu6(self.depthwise(F.silu(self.norm(self.expand(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y * gate)
        return self.head(self.multiply(x).mean((2, 3)))


class ShuffleAndDense(nn.Module):
    """Channel split, shuffle by views, dense concatenation, grouped convolutions in both modes, group norm, prelu, glu."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.branch = nn.Conv2d(8, 8, 3, 1, 1)
        self.positions = nn.Conv2d(16, 16, 3, 1, 1, groups=2)
        self.groups = nn.Conv2d(16, 32, 3, 1, 1, groups=8)
        self.norm = nn.GroupNorm(4, 32)
        self.prelu = nn.PReLU(32)
        self.scale = nn.Parameter(torch.rand(32, 1, 1) + 0.5)
        self.grow = nn.Conv2d(32, 8, 1)
        self.dense_norm = nn.BatchNorm2d(40)
        self.gated = nn.Conv2d(40, 24, 1)
        self.up = nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(4 * 64, 7)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        y = torch.cat([left, F.elu(self.branch(right))], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.prelu(self.norm(self.groups(self.positions(y)))) * self.scale
        y = self.dense_norm(torch.cat([y, self.grow(y)], 1))
        y = F.glu(self.gated(F.leaky_relu(y)), 1)
        y = F.pixel_shuffle(self.up(F.interpolate(y, scale_factor=2)), 2)
        y = F.adaptive_max_pool2d(y[:, 1:], 8).permute(0, 2, 3, 1).flatten(1)
        return self.head(F.pad(y, (0, 64)))
