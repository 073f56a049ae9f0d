"""VGG-16 and VGG-19 with batch-norm for CIFAR: thirteen or sixteen 3×3 convolutions, five poolings, a small classifier.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition (arXiv 1409.1556), configurations
D and E, with batch-norm behind every convolution. State_dict keys: `features.N` (convolution, batch-norm, ReLU and
pooling counted in one sequence) and one of three classifiers, told apart by their keys:

    linear     classifier                                   one layer
    mlp        classifier.0, classifier.3, classifier.6     dropout behind the hidden layers
    dropout    classifier.1, classifier.4, classifier.6     dropout in front of the hidden layers
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from core.architectures.arguments import integer_in
from core.architectures.family import Architecture, OwnFamily

# Convolutions of each of the five stages; a pooling follows each stage.
STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
STAGE_WIDTHS = (64, 128, 256, 512, 512)
_HIDDEN = {"linear": (), "mlp": (0, 3), "dropout": (1, 4)}
_WIDTH = {"type": "integer", "minimum": 1, "maximum": 4096}


def default_widths(depth: int) -> list[int]:
    return [width for width, count in zip(STAGE_WIDTHS, STAGES[depth], strict=True) for _ in range(count)]


class CifarVgg(nn.Module):
    """(batch, in_channels, 32, 32) → (batch, num_classes); any height and width from 32 to 63."""

    def __init__(
        self,
        depth: int,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int],
        classifier: str,
        hidden_widths: Sequence[int],
        bias: bool,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        last_of_stage = set(_ends(depth))
        previous = in_channels
        for index, width in enumerate(widths):
            self.features.append(nn.Conv2d(previous, width, 3, padding=1, bias=bias))
            self.features.append(nn.BatchNorm2d(width))
            self.features.append(nn.ReLU(inplace=True))
            if index in last_of_stage:
                self.features.append(nn.MaxPool2d(2, 2))
            previous = width
        if classifier == "linear":
            self.classifier: nn.Module = nn.Linear(previous, num_classes)
            return
        first, second = (nn.Linear(a, b) for a, b in zip((previous, hidden_widths[0]), hidden_widths, strict=True))
        head = nn.Linear(hidden_widths[1], num_classes)
        if classifier == "mlp":
            layers = [first, nn.ReLU(True), nn.Dropout(), second, nn.ReLU(True), nn.Dropout(), head]
        else:
            layers = [nn.Dropout(), first, nn.ReLU(True), nn.Dropout(), second, nn.ReLU(True), head]
        self.classifier = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def infer(depth: int, state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the weights' shapes and keys tell; what they tell beyond the schema's limits is left out."""
    found: dict[str, Any] = {}
    weights = [state.get(f"features.{position}.weight") for position in _convolutions(depth)]
    if all(weight is not None and weight.ndim == 4 and integer_in(_WIDTH, weight.shape[0]) for weight in weights):
        found["widths"] = [weight.shape[0] for weight in weights]
        found["bias"] = "features.0.bias" in state
        if integer_in(_WIDTH, weights[0].shape[1]):
            found["in_channels"] = weights[0].shape[1]
    kind = next(
        (kind for kind, hidden in _HIDDEN.items() if all(_layer(state, n) for n in hidden) and hidden), "linear"
    )
    last = state.get("classifier.weight" if kind == "linear" else "classifier.6.weight")
    if last is None or last.ndim != 2:
        return found
    found["classifier"] = kind
    hidden = [state[_layer(state, n)].shape[0] for n in _HIDDEN[kind]]
    if hidden and all(integer_in(_WIDTH, width) for width in hidden):
        found["hidden_widths"] = hidden
    if 1 <= last.shape[0] <= 1_000_000:
        found["num_classes"] = last.shape[0]
    return found


def _layer(state: Mapping[str, Tensor], position: int) -> str | None:
    name = f"classifier.{position}.weight"
    return name if name in state and state[name].ndim == 2 else None


def _ends(depth: int) -> list[int]:
    """Indices of the convolutions that end a stage."""
    stages = STAGES[depth]
    return [sum(stages[: count + 1]) - 1 for count in range(len(stages))]


def _convolutions(depth: int) -> list[int]:
    """Positions of the convolutions in `features`: three modules each, and a pooling after every stage."""
    ends = _ends(depth)
    return [3 * index + sum(end < index for end in ends) for index in range(sum(STAGES[depth]))]


def _schema(depth: int) -> dict[str, Any]:
    count = sum(STAGES[depth])
    return {
        "type": "object",
        "properties": {
            "in_channels": {**_WIDTH, "default": 3, "description": "Channels of the input. Inferred."},
            "num_classes": {**_WIDTH, "maximum": 1_000_000, "default": 10, "description": "Outputs. Inferred."},
            "widths": {
                "type": "array",
                "items": dict(_WIDTH),
                "minItems": count,
                "maxItems": count,
                "default": default_widths(depth),
                "description": "Filters of every convolution. Inferred.",
            },
            "classifier": {
                "type": "string",
                "enum": list(_HIDDEN),
                "default": "linear",
                "description": "One layer, or two hidden layers with dropout behind (mlp) or in front of them. Inferred.",
            },
            "hidden_widths": {
                "type": "array",
                "items": dict(_WIDTH),
                "minItems": 2,
                "maxItems": 2,
                "default": [512, 512],
                "description": "Units of the hidden layers, where the classifier has any. Inferred.",
            },
            "bias": {"type": "boolean", "default": True, "description": "Whether convolutions have biases. Inferred."},
        },
        "additionalProperties": False,
    }


def _construct(depth: int, args: Mapping[str, Any]) -> nn.Module:
    return CifarVgg(depth=depth, **args)


FAMILY = OwnFamily(
    tuple(
        Architecture(
            name=f"cifar_vgg{depth}_bn",
            title=f"VGG-{depth} with batch-norm for CIFAR (Simonyan, Zisserman 2014)",
            args_schema=_schema(depth),
            infer=functools.partial(infer, depth),
            construct=functools.partial(_construct, depth),
            input_shape=lambda args: (args["in_channels"], 32, 32),
        )
        for depth in STAGES
    )
)
