"""Datasets: an upload as three splits of images and labels, ready for a network.

Images stay as they are stored, uint8 as a rule, until a batch is used; shapes are kept as the data says (grey is one
channel). What does not fit the memory's share is read from a file (`core.recovery.images`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.recovery.chunks import SPLIT_NAMES, Chunk, joined_labels
from core.recovery.encoded_images import Conversion
from core.recovery.images import Images, RowFile, Split, StoredImages
from core.recovery.layouts import open_dataset
from core.recovery.limits import memory_allowance_bytes
from core.recovery.preparation import Normalization, checked_scale, require_normalization
from core.recovery.splits import complete_splits


@dataclass(frozen=True)
class ImageDataset:
    """Three disjoint splits; `test` is for reporting only.

    classes: how many names they have, or else the largest label + 1; None without labels. normalization: per-channel
    (mean, std), applied to uint8 images after division by `scale`; float images are the network's inputs as they are.
    """

    format: str
    classes: int | None
    train: Split
    val: Split
    test: Split
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
    scale: float

    @property
    def labelled(self) -> bool:
        return self.classes is not None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.train.images.shape[1:])

    def prepare(self, images: Tensor) -> Tensor:
        """Stored images ([n, C, H, W]) as float32 network inputs on the same device."""
        if images.dtype != torch.uint8:
            return images
        inputs = images.float().div_(self.scale)
        if self.normalization is not None:
            mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in self.normalization)
            inputs.sub_(mean).div_(std)
        return inputs


def load_dataset(
    path: Path,
    *,
    normalization: Normalization | None = None,
    scale: float | None = None,
    conversion: Conversion | None = None,
    seed: int = 0,
) -> ImageDataset:
    """Read an upload, into memory or, beyond the memory's share, into a file; splits that it lacks are drawn with `seed`.

    Raises EngineError("dataset_invalid").
    """
    format_name, chunks = open_dataset(path, conversion)
    collected = _Collected(memory_allowance_bytes())
    for chunk in chunks:
        collected.add(chunk)
    require_normalization(normalization, collected.image_shape[0])
    labels, classes = joined_labels(collected.labels, collected.class_names)
    codes = complete_splits(np.concatenate(collected.codes), labels, seed)
    train, val, test = (
        Split(images, torch.from_numpy(labels[codes == code]) if labels is not None else None)
        for code, images in enumerate(collected.images_of_splits(codes))
    )
    fixed = tuple(tuple(float(value) for value in values) for values in normalization) if normalization else None
    return ImageDataset(format_name, classes, train, val, test, fixed, checked_scale(scale))


class _Collected:
    """The examples of an upload: images in memory up to an allowance, all of them in a file beyond it."""

    def __init__(self, allowance_bytes: int) -> None:
        self._allowance_bytes = allowance_bytes
        self._taken_bytes = 0
        self._parts: list[np.ndarray] = []
        self._file: RowFile | None = None
        self.image_shape: tuple[int, ...] = ()
        self.class_names: tuple[str, ...] | None = None
        self.labels: list[np.ndarray | None] = []
        self.codes: list[np.ndarray] = []

    def add(self, chunk: Chunk) -> None:
        self.image_shape, self.class_names = chunk.images.shape[1:], chunk.class_names
        self.labels.append(chunk.labels)
        self.codes.append(chunk.splits)
        self._taken_bytes += chunk.images.nbytes
        self._parts.append(chunk.images)
        if self._taken_bytes > self._allowance_bytes:
            self._file = self._file or RowFile(self.image_shape, chunk.images.dtype)
            for part in self._parts:
                self._file.append(part)
            self._parts.clear()

    def images_of_splits(self, codes: np.ndarray) -> list[Images]:
        """The images of each split in stored order; called once, as the parts in memory are let go."""
        if self._file is not None:
            return [StoredImages(self._file, np.flatnonzero(codes == code)) for code in range(len(SPLIT_NAMES))]
        # Each part is let go once it is copied. The system may get it back only later, so the peak is up to two copies.
        self._parts.reverse()
        shape, dtype = self.image_shape, self._parts[-1].dtype
        splits = [np.empty((int((codes == code).sum()), *shape), dtype) for code in range(len(SPLIT_NAMES))]
        filled = [0] * len(splits)
        row = 0
        while self._parts:
            part = self._parts.pop()
            own = codes[row : row + len(part)]
            row += len(part)
            for code, target in enumerate(splits):
                chosen = part[own == code]
                target[filled[code] : filled[code] + len(chosen)] = chosen
                filled[code] += len(chosen)
        return [torch.from_numpy(split) for split in splits]
