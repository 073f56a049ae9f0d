"""`timm:*`: the networks of PyTorch Image Models, from the checkpoints that it publishes or that were trained with it.

Names are those of `timm.create_model` without a tag: `timm:resnet50` for every `resnet50.*` checkpoint. Checkpoints of
the original authors are translated by timm's own filters as long as these only rename and rearrange; one that would
interpolate (a position embedding for another image size) would deliver another network than the one uploaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from core.architectures.family import Args, State
from core.architectures.library import Entry, LibraryFamily

_SIZE = {"type": "integer", "minimum": 1, "maximum": 8192}

PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    "num_classes": {
        "type": "integer",
        "minimum": 0,
        "maximum": 1_000_000,
        "description": "Outputs, 0 for the features before the classifier; inferred from the weights where left out.",
    },
    "in_chans": {"type": "integer", "minimum": 1, "maximum": 1024, "description": "Channels of the input. Inferred."},
    "img_size": {
        "type": "array",
        "items": _SIZE,
        "minItems": 2,
        "maxItems": 2,
        "description": "Height and width of the input; those of `input_shape` where left out.",
    },
    "global_pool": {
        "type": "string",
        "enum": ["", "avg", "max", "avgmax", "catavgmax", "fast", "token", "map"],
        "description": "How positions become one vector before the classifier.",
    },
    "output_stride": {
        "type": "integer",
        "enum": [8, 16, 32],
        "minimum": 8,
        "maximum": 32,
        "description": "Input pixels per pixel of the last stage; dilation makes up for the strides left out.",
    },
    "drop_rate": {
        "type": "number",
        "minimum": 0.0,
        "maximum": 0.99,
        "description": "Dropout before the classifier, for recovery training.",
    },
}


def library() -> ModuleType:
    """timm, kept from fetching anything even where a network were asked for with its published weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import timm

    return timm


def build(name: str, args: Args) -> nn.Module:
    """The module with `args`; nothing is fetched."""
    return library().create_model(name, pretrained=False, **args)


def infer(entry: Entry, state: State) -> dict[str, Any]:
    """No classes where everything but the classifier is there."""
    return {"num_classes": 0} if entry.layouts[0].lacks(state, "num_classes") else {}


def renamed(module: nn.Module, state: State) -> State:
    """The state as the filter of the network's own file in timm translates it; as it is where there is none."""
    translate = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        found = translate(dict(state), module)
    except Exception:  # written for particular checkpoints, it may stumble in any way over another one
        return state
    tensors = isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())
    return found if tensors and _elements(found) == _elements(state) else state


def for_inference(module: nn.Module) -> nn.Module:
    return module


def _elements(state: State) -> int:
    return sum(tensor.numel() for tensor in state.values())


FAMILY = LibraryFamily(
    prefix="timm",
    properties=PROPERTIES,
    size_arguments=("img_size",),
    build=build,
    infer=infer,
    renamed=renamed,
    for_inference=for_inference,
)
