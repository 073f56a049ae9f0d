"""Does a dataset fit a network, and how well does a network do on it.

Accuracy is top-1 in evaluation mode and float32, whatever precision the training used: it is what the user will get.
"""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor, nn

from core.errors import EngineError
from core.network import Network
from core.recovery.chunks import invalid_dataset
from core.recovery.dataset import ImageDataset
from core.recovery.images import Images, Split

# Elements of one input batch: 512 images of 3×32×32, 13 of 3×224×224 on a CPU.
_BATCH_ELEMENTS = {"cpu": 2**21, "cuda": 2**25}
_MAX_BATCH = 512
# A misread baseline shows on any sample; more would only cost time.
_BASELINE_EXAMPLES = 1024


def check_fits(dataset: ImageDataset, network: Network) -> None:
    """Raise EngineError("dataset_invalid"), with both shapes, unless the network can be run and scored on the dataset."""
    if len(network.inputs) != 1:
        raise invalid_dataset(
            f"The network has {len(network.inputs)} inputs ({[spec.name for spec in network.inputs]}); datasets hold one "
            "image per example. Run the job without a dataset."
        )
    (wanted,) = network.inputs
    if tuple(wanted.shape) != dataset.image_shape:
        raise invalid_dataset(
            f"The dataset's images are {_shape(dataset.image_shape)} and the network's input is {_shape(wanted.shape)} "
            f"(channels×height×width). {_way_out(dataset, tuple(wanted.shape))}, or set the model's input_shape to what it "
            "was trained on."
        )
    if not dataset.labelled and not any(spec.dtype.is_floating_point for spec in network.outputs):
        raise invalid_dataset(
            f"The network gives only places or truth values ({[spec.name for spec in network.outputs]}), which recovery "
            "cannot follow. Run the job without a dataset, or upload the network with its scores as outputs."
        )
    if not dataset.labelled:
        return
    output = network.outputs[0]
    if len(network.outputs) != 1 or len(output.shape) != 1:
        raise invalid_dataset(
            f"The network has the outputs {[_shape(spec.shape) for spec in network.outputs]}; a labelled dataset needs a "
            "classifier with one score per class. Leave the labels out, or run the job without a dataset."
        )
    if dataset.classes > output.shape[0]:
        raise invalid_dataset(
            f"The dataset's labels go up to {dataset.classes - 1} ({dataset.classes} classes) and the network has "
            f"{output.shape[0]} outputs. Upload the dataset that the network was trained on, or renumber its labels."
        )


def accuracy(
    network: Network | nn.Module, split: Split, dataset: ImageDataset, *, device: torch.device | str = "cpu"
) -> float:
    """Top-1 accuracy on a labelled split, as a fraction. A module must be on `device`; its mode is given back."""
    return top1(predict(network, split.images, dataset, device=device), split.labels)


def top1(scores: Tensor, labels: Tensor) -> float:
    """Share of rows of `scores` ([n, K]) whose largest entry is at `labels` ([n])."""
    return (scores.argmax(dim=1) == labels.to(scores.device)).double().mean().item()


def check_baseline(original: Network, dataset: ImageDataset, *, device: torch.device | str = "cpu") -> float | None:
    """The original network's accuracy on validation and test examples (at most 1,024 of each), or None without labels.

    Raises EngineError("dataset_invalid") when it is under `least_baseline(classes)`: then the images are not prepared as
    in training, or the labels are in another order, and every later figure would be meaningless.
    """
    if not dataset.labelled:
        return None
    splits = [split.sample(_BASELINE_EXAMPLES) for split in (dataset.val, dataset.test)]
    measured = [accuracy(original, split, dataset, device=device) for split in splits]
    baseline = sum(value * len(split) for value, split in zip(measured, splits, strict=True)) / sum(map(len, splits))
    least = least_baseline(dataset.classes)
    if baseline < least:
        raise EngineError(
            "dataset_invalid",
            f"The original network is right on {baseline:.1%} of the dataset's {sum(map(len, splits))} validation and test "
            f"images; chance is {1 / dataset.classes:.1%} and at least {least:.1%} is needed. The likely causes: the images "
            f"are not normalised as in training ({_preparation(dataset)}), or the labels are in another order than the "
            "network's outputs. Set `normalization` and `scale`, or renumber the labels.",
            param="/dataset",
            details={"accuracy": baseline, "least": least},
        )
    return baseline


def least_baseline(classes: int) -> float:
    """The accuracy under which a baseline is refused: twice chance; 0.625 with two classes.

    With two classes twice chance would be perfection. A misread input gives about 0.5 there and swapped labels less, while
    a hard but real binary task may give 0.7; a quarter of the way from chance to perfection lies between the two.
    """
    chance = 1 / classes
    return 2 * chance if classes > 2 else chance + (1 - chance) / 4


@torch.no_grad()
def predict(
    network: Network | nn.Module, images: Images, dataset: ImageDataset, *, device: torch.device | str = "cpu"
) -> Tensor:
    """First outputs [n, K] for stored images: evaluation mode, float32, in batches, left on `device`."""
    module = network.module().to(device) if isinstance(network, Network) else network
    was_training = module.training
    module.eval()
    size = batch_size_for(images.shape[1:], torch.device(device))
    outputs = [_first(module(dataset.prepare(batch.to(device)))) for batch in images.split(size)]
    module.train(was_training)
    return torch.cat(outputs).float()


def _first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def batch_size_for(image_shape: torch.Size | tuple[int, ...], device: torch.device) -> int:
    elements = _BATCH_ELEMENTS.get(device.type, _BATCH_ELEMENTS["cpu"])
    return max(1, min(_MAX_BATCH, elements // math.prod(image_shape)))


def _way_out(dataset: ImageDataset, wanted: tuple[int, ...]) -> str:
    """What makes the images fit: a conversion, where it can."""
    colors = {1: "grey", 3: "rgb"}
    if dataset.format == "npz" or len(wanted) != 3 or wanted[0] not in colors:
        return "Resize or convert the images"
    channels, *size = dataset.image_shape
    convert = {} if size == list(wanted[1:]) else {"size": list(wanted[1:])}
    if channels != wanted[0]:
        convert["color"] = colors[wanted[0]]
    return f"Upload the dataset with convert {json.dumps(convert)}"


def _preparation(dataset: ImageDataset) -> str:
    if dataset.train.images.dtype != torch.uint8:
        return "float arrays are taken as they are"
    if dataset.normalization is None:
        return f"here: divided by {dataset.scale:g}, no normalization given"
    mean, std = dataset.normalization
    return f"here: divided by {dataset.scale:g}, mean {list(mean)}, std {list(std)}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
