"""`torchvision:*`: the networks of torchvision, from the checkpoints that it publishes or that were trained with it.

What takes one tensor and gives tensors is here: classification, segmentation and video. Left out are detection (a list of
images in, boxes whose number depends on the data out), optical flow (two images in, a list out) and the quantized
networks (their checkpoints hold packed integers, and a float network to prune is here under its own name).

Heads that only training runs are read where the checkpoint has them and left away in what is delivered: the auxiliary
classifiers of googlenet, inception_v3 and the segmentation networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from core.architectures.family import Args, State
from core.architectures.library import Entry, LibraryFamily

_RATE = {"type": "number", "minimum": 0.0, "maximum": 0.99}
_SIZE = {"type": "integer", "minimum": 1, "maximum": 8192}

PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    "num_classes": {
        "type": "integer",
        "minimum": 1,
        "maximum": 1_000_000,
        "description": "Outputs; inferred from the weights where left out.",
    },
    "aux_logits": {"type": "boolean", "description": "Whether the checkpoint has auxiliary classifiers. Inferred."},
    "aux_loss": {"type": "boolean", "description": "Whether the checkpoint has an auxiliary classifier. Inferred."},
    "transform_input": {
        "type": "boolean",
        "description": "Whether the network itself rescales its input from ImageNet's statistics to ±1, as published "
        "weights expect of it; false by default.",
    },
    "image_size": {**_SIZE, "description": "Height and width of the input; those of `input_shape` where left out."},
    "input_size": {
        "type": "array",
        "items": _SIZE,
        "minItems": 2,
        "maxItems": 2,
        "description": "Height and width of the input; those of `input_shape` where left out.",
    },
    "replace_stride_with_dilation": {
        "type": "array",
        "items": {"type": "boolean"},
        "minItems": 3,
        "maxItems": 3,
        "description": "Per stage from the second on: dilated convolutions instead of strided ones.",
    },
    "width_mult": {"type": "number", "minimum": 0.1, "maximum": 8.0, "description": "Multiplies every width."},
    "dropout": {**_RATE, "description": "Dropout before the classifier, for recovery training."},
    "drop_rate": {**_RATE, "description": "Dropout after each dense layer, for recovery training."},
}

_VERSION_1_KEYS = (
    # Checkpoints of 2017, from before a module's name could not contain a dot.
    (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    # Vision transformers before the perceptron became a sequence.
    (re.compile(r"^(.*\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"^(.*\.mlp)\.linear_2\."), r"\1.3."),
)
_AUXILIARY = {"aux_logits": ("aux1.", "AuxLogits."), "aux_loss": ("aux_classifier.",)}
_TRAINING_HEADS = ("aux1", "aux2", "AuxLogits", "aux_classifier")


def build(name: str, args: Args) -> nn.Module:
    """The module with `args`; nothing is fetched."""
    import torchvision

    unfetched: dict[str, Any] = {"weights": None}
    if "weights_backbone" in builder_parameters(name):
        unfetched["weights_backbone"] = None
    if "aux_logits" in args:
        # Their own initialisation draws from scipy's truncated normal, which takes seconds.
        unfetched["init_weights"] = False
    return torchvision.models.get_model(name, **unfetched, **args)


def builder_parameters(name: str) -> frozenset[str]:
    """Names of the parameters that the builder function of `name` declares."""
    import inspect

    import torchvision

    return frozenset(inspect.signature(torchvision.models.get_model_builder(name)).parameters)


def infer(entry: Entry, state: State) -> dict[str, Any]:
    """Whether auxiliary heads are there."""
    return {
        argument: any(key.startswith(prefixes) for key in state)
        for argument, prefixes in _AUXILIARY.items()
        if argument in entry.arguments
    }


def renamed(module: nn.Module, state: State) -> State:
    """Keys of checkpoints from earlier versions, as torchvision itself translates them."""
    found = {}
    for key, tensor in state.items():
        for pattern, replacement in _VERSION_1_KEYS:
            key = pattern.sub(replacement, key)
        found[key] = tensor
    return found


def for_inference(module: nn.Module) -> nn.Module:
    """Without auxiliary heads: in eval mode they are never run, or their result is not the network's."""
    for name in _TRAINING_HEADS:
        if hasattr(module, name):
            setattr(module, name, None)
    if hasattr(module, "aux_logits"):
        module.aux_logits = False
    return module


FAMILY = LibraryFamily(
    prefix="torchvision",
    properties=PROPERTIES,
    size_arguments=("image_size", "input_size"),
    build=build,
    infer=infer,
    renamed=renamed,
    for_inference=for_inference,
)
