"""Datasets: an upload as three splits of images and labels, or as a profile of what it holds.

Layouts (recognised by content, never by the file's name): `.npz` arrays, a Parquet file, a `.tar` or `.tar.gz` of
Parquet shards. Images stay uint8 until a batch is used; shapes are kept as the data says (grey is one channel).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.recovery.archive import shards
from core.recovery.chunks import SPLIT_NAMES, TRAIN, Allowance, Chunk, invalid_dataset
from core.recovery.encoded_images import ImageDecoder
from core.recovery.images import Images, RowFile, Split, StoredImages
from core.recovery.limits import memory_allowance_bytes
from core.recovery.npz import read_npz
from core.recovery.parquet import read_parquet
from core.recovery.splits import complete_splits

DEFAULT_SCALE = 255.0
# Beyond these, float32 inputs would be all but zero or no longer finite.
_SCALES = (1e-3, 1e6)
_LEAST_DEVIATION, _LARGEST_MOMENT = 1e-6, 1e6
Normalization = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class ImageDataset:
    """Three disjoint splits; `test` is for reporting only.

    classes: largest label + 1, or None without labels. normalization: per-channel (mean, std), applied to uint8 images
    after division by `scale`; float images are the network's inputs as they are.
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


@dataclass(frozen=True)
class DatasetProfile:
    """What an upload holds. mean, std: per channel, of the train split's pixels after division by the scale."""

    format: str
    classes: int | None
    splits: dict[str, int]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def inspect_dataset(
    path: Path, *, normalization: Normalization | None = None, scale: float | None = None
) -> DatasetProfile:
    """Read a whole upload in the memory of one chunk and say what it holds. Raises EngineError("dataset_invalid")."""
    format_name, chunks = _open(path)
    moments: _Moments | None = None
    labels, codes = [], []
    for chunk in _consistent(chunks):
        if moments is None:
            _require_normalization(normalization, chunk.images.shape[1])
            moments = _Moments(chunk.images.shape[1], _scale(scale) if chunk.images.dtype == np.uint8 else 1.0)
        moments.add(chunk.images[chunk.splits == TRAIN])
        labels.append(chunk.labels)
        codes.append(chunk.splits)
        shape = chunk.images.shape[1:]
    labels, classes = _all_labels(labels)
    completed = complete_splits(np.concatenate(codes), labels, seed=0)
    mean, std = moments.mean_and_std()
    splits = {name: int((completed == code).sum()) for code, name in enumerate(SPLIT_NAMES)}
    return DatasetProfile(format_name, classes, splits, tuple(int(size) for size in shape), mean, std)


def load_dataset(
    path: Path, *, normalization: Normalization | None = None, scale: float | None = None, seed: int = 0
) -> ImageDataset:
    """Read an upload into memory; splits that it lacks are drawn with `seed`. Raises EngineError("dataset_invalid")."""
    format_name, chunks = _open(path)
    collected = _Collected(memory_allowance_bytes())
    for chunk in _consistent(chunks):
        collected.add(chunk)
    _require_normalization(normalization, collected.image_shape[0])
    labels, classes = _all_labels(collected.labels)
    codes = complete_splits(np.concatenate(collected.codes), labels, seed)
    train, val, test = (
        Split(images, torch.from_numpy(labels[codes == code]) if labels is not None else None)
        for code, images in enumerate(collected.images_of_splits(codes))
    )
    fixed = tuple(tuple(float(value) for value in values) for values in normalization) if normalization else None
    return ImageDataset(format_name, classes, train, val, test, fixed, _scale(scale))


def _open(path: Path) -> tuple[str, Iterator[Chunk]]:
    """The layout's name and its examples."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return "npz", read_npz(path)
    if head.startswith(b"PAR1"):
        return "parquet", _read_parquet_file(path)
    if head.startswith(b"\x1f\x8b"):
        return "parquet_tar", _read_shards(path, compressed=True)
    if head[257:262] == b"ustar":
        return "parquet_tar", _read_shards(path, compressed=False)
    if head and not any(head):
        raise invalid_dataset(
            "The file begins with zeros only, as a tar archive without members does; pack shards named train*.parquet, "
            "val*.parquet and test*.parquet into it."
        )
    found = "is empty" if not head else f"begins with {head[:8]!r}"
    hint = " A bare .npy has no labels: use np.savez(path, x=images, y=labels)." if head[:6] == b"\x93NUMPY" else ""
    raise invalid_dataset(
        f"The file is neither .npz, nor .parquet, nor a .tar or .tar.gz of Parquet shards; it {found}.{hint}"
    )


def _read_parquet_file(path: Path) -> Iterator[Chunk]:
    with path.open("rb") as file:
        yield from read_parquet(file, "the Parquet file", None, _decoder())


def _read_shards(path: Path, *, compressed: bool) -> Iterator[Chunk]:
    decoder = _decoder()
    for name, split, file in shards(path, compressed=compressed):
        yield from read_parquet(file, name, split, decoder)


def _decoder() -> ImageDecoder:
    return ImageDecoder(Allowance(), threads=torch.get_num_threads())


def _consistent(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    labelled = None
    for chunk in chunks:
        if labelled is not None and (chunk.labels is not None) != labelled:
            raise invalid_dataset(
                "Some files of the dataset have labels and others have none; give all of them labels."
            )
        labelled = chunk.labels is not None
        yield chunk


def _all_labels(parts: list[np.ndarray | None]) -> tuple[np.ndarray | None, int | None]:
    if parts[0] is None:
        return None, None
    labels = np.concatenate(parts)
    if (labels == labels[0]).all():
        raise invalid_dataset(f"Every label is {labels[0]}; at least two classes are needed.")
    return labels, int(labels.max()) + 1


def _scale(scale: float | None) -> float:
    if scale is not None and not _SCALES[0] <= scale <= _SCALES[1]:
        raise invalid_dataset(
            f"scale is {scale:g}; it is what uint8 pixels are divided by, a number from {_SCALES[0]:g} to {_SCALES[1]:g} "
            "(255 maps them to 0…1)."
        )
    return DEFAULT_SCALE if scale is None else float(scale)


def _require_normalization(normalization: Normalization | None, channels: int) -> None:
    if normalization is None:
        return
    mean, std = normalization
    if len(mean) != channels or len(std) != channels:
        raise invalid_dataset(
            f"normalization has {len(mean)} means and {len(std)} standard deviations, and the images have {channels} "
            "channel(s); give one of each per channel."
        )
    if not all(_LEAST_DEVIATION <= value <= _LARGEST_MOMENT for value in std):
        raise invalid_dataset(
            f"normalization: the standard deviations are {list(std)}; each must be positive, from {_LEAST_DEVIATION:g} to "
            f"{_LARGEST_MOMENT:g}."
        )
    if not all(abs(value) <= _LARGEST_MOMENT for value in mean):
        raise invalid_dataset(f"normalization: the means are {list(mean)}; none may be beyond ±{_LARGEST_MOMENT:g}.")


class _Moments:
    """Running sums for the mean and standard deviation per channel."""

    def __init__(self, channels: int, scale: float) -> None:
        self._scale = scale
        self._count = 0
        self._sum = np.zeros(channels)
        self._sum_of_squares = np.zeros(channels)

    def add(self, images: np.ndarray) -> None:
        values = images.astype(np.float64) / self._scale
        self._count += images.shape[0] * images.shape[2] * images.shape[3]
        self._sum += values.sum(axis=(0, 2, 3))
        self._sum_of_squares += (values * values).sum(axis=(0, 2, 3))

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean = self._sum / self._count
        variance = np.maximum(self._sum_of_squares / self._count - mean * mean, 0)
        return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


class _Collected:
    """The examples of an upload: images in memory up to an allowance, all of them in a file beyond it."""

    def __init__(self, allowance_bytes: int) -> None:
        self._allowance_bytes = allowance_bytes
        self._taken_bytes = 0
        self._parts: list[np.ndarray] = []
        self._file: RowFile | None = None
        self.image_shape: tuple[int, ...] = ()
        self.labels: list[np.ndarray | None] = []
        self.codes: list[np.ndarray] = []

    def add(self, chunk: Chunk) -> None:
        self.image_shape = chunk.images.shape[1:]
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
        # Each part is let go once it is copied, so that the peak stays near one copy.
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
