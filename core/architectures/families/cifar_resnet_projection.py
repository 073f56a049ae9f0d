"""ResNet-18 for CIFAR with projection shortcuts: the form of most public CIFAR training repositories.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016: the ImageNet ResNet-18 with a 3×3 stem of
stride 1 and no pooling behind it. Where a block changes the resolution or the width, its shortcut is a 1×1 convolution
with batch-norm ("option B").

State_dict keys: `conv1 bn1 layer{1..4}.{0,1}.conv1/bn1/conv2/bn2/shortcut.0/shortcut.1 linear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from core.architectures.arguments import integer_in
from core.architectures.family import Architecture, OwnFamily

WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2
_BLOCKS = len(WIDTHS) * BLOCKS_PER_STAGE
_WIDTH = {"type": "integer", "minimum": 1, "maximum": 4096}

_PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    "in_channels": {**_WIDTH, "default": 3, "description": "Channels of the input. Inferred."},
    "num_classes": {**_WIDTH, "maximum": 1_000_000, "default": 10, "description": "Outputs. Inferred."},
    "widths": {
        "type": "array",
        "items": dict(_WIDTH),
        "minItems": len(WIDTHS),
        "maxItems": len(WIDTHS),
        "default": list(WIDTHS),
        "description": "Channels of the four stages; the stem has those of the first. Inferred.",
    },
    "inner_widths": {
        "type": "array",
        "items": dict(_WIDTH),
        "minItems": _BLOCKS,
        "maxItems": _BLOCKS,
        "description": "Channels between the two convolutions of each block, where pruned. Inferred.",
    },
}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which projects where the shape changes."""

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ProjectionResNet(nn.Module):
    """(batch, in_channels, height, width) → (batch, num_classes); any height and width."""

    def __init__(
        self, in_channels: int, num_classes: int, widths: Sequence[int], inner_widths: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if inner_widths is None:
            inner_widths = [width for width in widths for _ in range(BLOCKS_PER_STAGE)]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        previous = widths[0]
        for stage, width in enumerate(widths):
            layer = nn.Sequential()
            for index in range(BLOCKS_PER_STAGE):
                stride = 2 if stage and not index else 1
                inner = inner_widths[stage * BLOCKS_PER_STAGE + index]
                layer.append(BasicBlock(previous, inner, width, stride))
                previous = width
            self.add_module(f"layer{stage + 1}", layer)
        self.linear = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def infer(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the weights' shapes tell; what they tell beyond the schema's limits is left out."""
    stem, head = state.get("conv1.weight"), state.get("linear.weight")
    found: dict[str, Any] = {}
    if stem is not None and stem.ndim == 4:
        found["in_channels"] = stem.shape[1]
    if head is not None and head.ndim == 2:
        found["num_classes"] = head.shape[0]
    found = {name: value for name, value in found.items() if integer_in(_PROPERTIES[name], value)}
    widths = _filters(state, [f"layer{stage}.0.conv2.weight" for stage in range(1, len(WIDTHS) + 1)])
    if widths is not None:
        found["widths"] = widths
        blocks = [(stage, index) for stage in range(1, len(WIDTHS) + 1) for index in range(BLOCKS_PER_STAGE)]
        inner = _filters(state, [f"layer{stage}.{index}.conv1.weight" for stage, index in blocks])
        if inner is not None and inner != [width for width in widths for _ in range(BLOCKS_PER_STAGE)]:
            found["inner_widths"] = inner
    return found


def _filters(state: Mapping[str, Tensor], names: Sequence[str]) -> list[int] | None:
    """Output channels of these convolutions, or None where one is missing or out of the schema's limits."""
    weights = [state.get(name) for name in names]
    if any(weight is None or weight.ndim != 4 or not integer_in(_WIDTH, weight.shape[0]) for weight in weights):
        return None
    return [weight.shape[0] for weight in weights]


FAMILY = OwnFamily(
    (
        Architecture(
            name="cifar_resnet18",
            title="ResNet-18 for CIFAR (He et al. 2016), 3×3 stem, projection shortcuts",
            args_schema={
                "type": "object",
                "properties": {name: dict(schema) for name, schema in _PROPERTIES.items()},
                "additionalProperties": False,
            },
            infer=infer,
            construct=lambda args: ProjectionResNet(**args),
            input_shape=lambda args: (args["in_channels"], 32, 32),
        ),
    )
)
