"""What an upload holds, found out in the memory of one block of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.recovery.chunks import SPLIT_NAMES, TRAIN, joined_labels
from core.recovery.encoded_images import Conversion
from core.recovery.layouts import open_dataset
from core.recovery.preparation import Normalization, checked_scale, require_normalization
from core.recovery.splits import complete_splits

# Beyond this, a profile has neither the classes' names nor their counts one by one.
MAX_LISTED_CLASSES = 1000
_COUNTED_AT_ONCE = 2**18


@dataclass(frozen=True)
class ClassCounts:
    """Examples per class of one split. least, most: over all classes. each: by label; None for too many classes to list."""

    least: int
    most: int
    each: tuple[int, ...] | None


@dataclass(frozen=True)
class DatasetProfile:
    """splits: examples in train, val and test, drawn ones included. class_names: by label, where the upload says them.

    class_counts: per split; None without labels. mean, std: per channel, of the stored train split's pixels after division
    by the scale (of drawn splits, too: nothing is drawn for good before a job names its seed).
    """

    format: str
    classes: int | None
    class_names: tuple[str, ...] | None
    splits: Mapping[str, int]
    class_counts: Mapping[str, ClassCounts] | None
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def inspect_dataset(
    path: Path,
    *,
    normalization: Normalization | None = None,
    scale: float | None = None,
    conversion: Conversion | None = None,
) -> DatasetProfile:
    """Read and check a whole upload and say what it holds. Raises EngineError("dataset_invalid")."""
    format_name, chunks = open_dataset(path, conversion)
    moments: _Moments | None = None
    labels, codes = [], []
    for chunk in chunks:
        if moments is None:
            image_shape, class_names = tuple(map(int, chunk.images.shape[1:])), chunk.class_names
            require_normalization(normalization, image_shape[0])
            moments = _Moments(image_shape[0], checked_scale(scale) if chunk.images.dtype == np.uint8 else 1.0)
        moments.add(chunk.images[chunk.splits == TRAIN])
        labels.append(chunk.labels)
        codes.append(chunk.splits)
    labels, classes = joined_labels(labels, class_names)
    completed = complete_splits(np.concatenate(codes), labels, seed=0)
    mean, std = moments.mean_and_std()
    return DatasetProfile(
        format=format_name,
        classes=classes,
        class_names=class_names if class_names and len(class_names) <= MAX_LISTED_CLASSES else None,
        splits={name: int((completed == code).sum()) for code, name in enumerate(SPLIT_NAMES)},
        class_counts=None
        if labels is None
        else {name: _counts(labels[completed == code], classes) for code, name in enumerate(SPLIT_NAMES)},
        image_shape=image_shape,
        mean=mean,
        std=std,
    )


def _counts(labels: np.ndarray, classes: int) -> ClassCounts:
    counts = np.bincount(labels, minlength=classes)
    listed = tuple(counts.tolist()) if classes <= MAX_LISTED_CLASSES else None
    return ClassCounts(int(counts.min()), int(counts.max()), listed)


class _Moments:
    """Mean and standard deviation per channel: of uint8 from how often each value comes, of floats from running sums."""

    def __init__(self, channels: int, scale: float) -> None:
        self._scale = scale
        self._histogram = np.zeros((channels, 256), np.int64)
        self._count = 0
        self._sum = np.zeros(channels)
        self._sum_of_squares = np.zeros(channels)

    def add(self, images: np.ndarray) -> None:
        if images.dtype == np.uint8:
            # Counting makes int64 of every value, so few are counted at a time.
            size = max(1, _COUNTED_AT_ONCE // (images.shape[2] * images.shape[3]))
            for row in range(0, len(images), size):
                for channel, histogram in enumerate(self._histogram):
                    histogram += np.bincount(images[row : row + size, channel].ravel(), minlength=256)
            return
        values = images.astype(np.float64)
        self._count += images.shape[0] * images.shape[2] * images.shape[3]
        self._sum += values.sum(axis=(0, 2, 3))
        self._sum_of_squares += (values * values).sum(axis=(0, 2, 3))

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        values = np.arange(256.0)
        count = self._count + self._histogram[0].sum()
        mean = (self._sum + self._histogram @ values) / count / self._scale
        square = (self._sum_of_squares + self._histogram @ values**2) / count / self._scale**2
        return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(square - mean * mean, 0)).tolist())
