"""CIFAR ResNets with parameter-free shortcuts.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2: depth 6n + 2, three stages of n
basic blocks whose widths double while the resolution halves; where they change, the shortcut takes every second pixel
and pads the new channels with zeros, half of them on each side ("option A").

State_dict keys: `conv1 bn1 layer{1..3}.{i}.conv1/bn1/conv2/bn2 linear`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from core.architectures.arguments import integer_in
from core.architectures.family import Architecture, OwnFamily

STAGES = 3
PRESET_DEPTHS = (20, 32, 44, 56, 110)
_INTEGER = {"type": "integer", "minimum": 1}

_PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    "depth": {
        **_INTEGER,
        "minimum": 8,
        "maximum": 1202,
        "default": 20,
        "description": "Number of layers, 6n + 2; inferred from the weights where left out.",
    },
    "width": {
        **_INTEGER,
        "maximum": 1024,
        "default": 16,
        "description": "Channels of the first stage; the others have two and four times as many. Inferred.",
    },
    "in_channels": {**_INTEGER, "maximum": 1024, "default": 3, "description": "Channels of the input. Inferred."},
    "num_classes": {**_INTEGER, "maximum": 1_000_000, "default": 10, "description": "Outputs. Inferred."},
    "inner_widths": {
        "type": "array",
        "items": {**_INTEGER, "maximum": 4096},
        "maxItems": 600,
        "description": "Channels between the two convolutions of each block, where pruned. Inferred.",
    },
}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


class CifarResNet(nn.Module):
    """(batch, in_channels, height, width) → (batch, num_classes); any height and width."""

    def __init__(
        self, depth: int, width: int, in_channels: int, num_classes: int, inner_widths: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 2 * STAGES)
        if remainder or blocks < 1:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, …), got {depth}")
        widths = [width << stage for stage in range(STAGES)]
        if inner_widths is None:
            inner_widths = [stage_width for stage_width in widths for _ in range(blocks)]
        if len(inner_widths) != STAGES * blocks:
            raise ValueError(f"inner_widths needs one entry per block ({STAGES * blocks}), got {len(inner_widths)}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        previous = width
        for stage, stage_width in enumerate(widths):
            layer = nn.Sequential()
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layer.append(BasicBlock(previous, inner_widths[stage * blocks + index], stage_width, stride))
                previous = stage_width
            self.add_module(f"layer{stage + 1}", layer)
        self.linear = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def infer(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the weights' shapes tell; what they tell beyond the schema's limits is left out."""
    found: dict[str, Any] = {}
    stem, head = state.get("conv1.weight"), state.get("linear.weight")
    if stem is not None and stem.ndim == 4:
        found["width"], found["in_channels"] = stem.shape[:2]
    if head is not None and head.ndim == 2:
        found["num_classes"] = head.shape[0]
    blocks = len({match[1] for match in map(re.compile(r"layer1\.(\d+)\.").match, state) if match})
    found["depth"] = 2 * STAGES * blocks + 2
    found = {name: value for name, value in found.items() if integer_in(_PROPERTIES[name], value)}
    inner_widths = _inner_widths(state, blocks)
    same_depth = found.get("depth") == given.get("depth", found.get("depth"))
    if inner_widths and same_depth and "width" in found:
        regular = [found["width"] << stage for stage in range(STAGES) for _ in range(blocks)]
        if inner_widths != regular:
            found["inner_widths"] = inner_widths
    return found


def _inner_widths(state: Mapping[str, Tensor], blocks: int) -> list[int] | None:
    """Per block the channels between its convolutions, or None where a block's convolutions disagree."""
    widths = []
    for stage in range(1, STAGES + 1):
        for index in range(blocks):
            first = state.get(f"layer{stage}.{index}.conv1.weight")
            second = state.get(f"layer{stage}.{index}.conv2.weight")
            if first is None or second is None or first.ndim != 4 or second.ndim != 4:
                return None
            if first.shape[0] != second.shape[1] or not integer_in(
                _PROPERTIES["inner_widths"]["items"], first.shape[0]
            ):
                return None
            widths.append(first.shape[0])
    return widths if len(widths) <= _PROPERTIES["inner_widths"]["maxItems"] else None


def _construct(args: Mapping[str, Any]) -> nn.Module:
    return CifarResNet(**args)


def _input_shape(args: Mapping[str, Any]) -> tuple[int, ...]:
    return (args["in_channels"], 32, 32)


def _schema(*properties: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: dict(_PROPERTIES[name]) for name in properties},
        "additionalProperties": False,
    }


def _preset_infer(depth: int, state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    found = infer(state, {**given, "depth": depth})
    found.pop("depth", None)
    return found


def _preset_construct(depth: int, args: Mapping[str, Any]) -> nn.Module:
    return CifarResNet(depth=depth, **args)


def _preset(depth: int) -> Architecture:
    return Architecture(
        name=f"cifar_resnet{depth}",
        title=f"ResNet-{depth} for CIFAR (He et al. 2016), shortcuts without parameters",
        args_schema=_schema("width", "in_channels", "num_classes", "inner_widths"),
        infer=functools.partial(_preset_infer, depth),
        construct=functools.partial(_preset_construct, depth),
        input_shape=_input_shape,
    )


FAMILY = OwnFamily(
    (
        Architecture(
            name="cifar_resnet",
            title="ResNet for small images (He et al. 2016) of any depth and width, shortcuts without parameters",
            args_schema=_schema("depth", "width", "in_channels", "num_classes", "inner_widths"),
            infer=infer,
            construct=_construct,
            input_shape=_input_shape,
        ),
        *(_preset(depth) for depth in PRESET_DEPTHS),
    )
)
