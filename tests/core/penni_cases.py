"""Small networks with hand-made dead channels, for the tests of kernel sharing."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from core.network import Network
from tests.core.recovery_cases import taught

# Shortcuts may slice and pad; the rest is what any runtime has.
PLAIN_OPERATORS = {
    "Conv",
    "Gather",
    "Relu",
    "Add",
    "Slice",
    "Pad",
    "GlobalAveragePool",
    "ReduceMean",
    "Gemm",
    "MatMul",
    "Flatten",
    "Reshape",
}


class Chain(nn.Module):
    """Two convolutions with a batch-norm and a ReLU between them, and a classifier."""

    def __init__(self, padding: int = 0, bias: bool = False, norm_behind: bool = True):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=padding, bias=bias)
        self.bn2 = nn.BatchNorm2d(6) if norm_behind else nn.Identity()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.first(x)))
        x = torch.relu(self.bn2(self.second(x)))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """A stream of 8 channels: a stem, a branch of two convolutions and one of a 1×1 convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a1, self.b1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a2, self.b2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.side, self.b3 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn0(self.stem(x)))
        y = self.b2(self.a2(torch.relu(self.b1(self.a1(x)))))
        return self.head(torch.relu(x + y + self.b3(self.side(x))).mean((2, 3)))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """With weights that are the same whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for one in module.modules():
            if hasattr(one, "reset_parameters"):
                one.reset_parameters()
    return module


def network_of(module: nn.Module, seed: int = 0, shape=(3, 9, 9)) -> Network:
    """Random weights and statistics."""
    module = seeded(module, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.weight.copy_(1 + torch.rand(one.weight.shape, generator=generator))
                one.bias.copy_(torch.randn(one.bias.shape, generator=generator))
                one.running_mean.copy_(torch.randn(one.bias.shape, generator=generator))
                one.running_var.copy_(0.5 + torch.rand(one.bias.shape, generator=generator))
    return Network.from_module(module, {"x": shape})


def changed(network: Network, **tensors: torch.Tensor) -> Network:
    return network.with_tensors({**network.tensors, **{k.replace("__", "."): v for k, v in tensors.items()}})


def silenced(network: Network, name: str, rows: list[int], axis: int = 0) -> Network:
    tensor = network.tensors[name].detach().index_fill(axis, torch.tensor(rows, dtype=torch.int64), 0)
    return network.with_tensors({**network.tensors, name: tensor})


def silent_value(network: Network, norm: str, channel: int, value: float) -> Network:
    """The batch-norm's channel says `value` where its input is zero."""
    tensors = dict(network.tensors)
    scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + 1e-5).sqrt()
    shift = tensors[f"{norm}.bias"].clone()
    shift[channel] = value + tensors[f"{norm}.running_mean"][channel] * scale[channel]
    return network.with_tensors({**tensors, f"{norm}.bias": shift})


def difference(one: Network, other: Network) -> float:
    inputs = one.random_inputs(4, 7, torch.float64)
    wanted, found = (net.to(torch.float64).run(*inputs)[0] for net in (one, other))
    return float((wanted - found).abs().max() / wanted.abs().max())


class Inverted(nn.Module):
    """The block of MobileNetV2: most of its work is in 1×1 convolutions."""

    def __init__(self, width: int = 24, wide: int = 96):
        super().__init__()
        self.widen, self.norm1 = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.own, self.norm2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide)
        self.narrow, self.norm3 = nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        wide = torch.relu(self.norm2(self.own(torch.relu(self.norm1(self.widen(x))))))
        return x + self.norm3(self.narrow(wide))


def mobile() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), Inverted(), Inverted(), Inverted()),
        *(nn.Conv2d(24, 96, 1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)),
    )


@cache
def mobile_network() -> Network:
    """That knows the digits."""
    return taught(mobile, epochs=8)
