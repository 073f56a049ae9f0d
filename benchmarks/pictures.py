"""Pictures of any size without labels, made of what is at hand, for networks that are imitated and not taught.

enlarged     one CIFAR-10 picture each, enlarged: few edges, and a detector finds next to nothing in them
collages     2×2 to 4×4 CIFAR-10 pictures side by side: many things of the sizes that detectors look for
photographs  crops of the two photographs that come with scikit-learn: what a camera gives, but of two scenes only

Test pictures share nothing with the others: they come from CIFAR-10's test file, or from another part of each photograph.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import Tensor

from core.recovery import ImageDataset
from core.recovery.images import Split

TRAIN, VAL, TEST = range(3)
_TILES = (2, 3, 4)
# The columns of a photograph, as shares of its width, and the least side of a crop, in pixels.
_STRIPES = {TRAIN: (0.0, 0.6), VAL: (0.6, 0.8), TEST: (0.8, 1.0)}
_LEAST_CROP = 96


def enlarged(data: Path, part: int, count: int, size: tuple[int, int]) -> list[Image.Image]:
    return [picture.resize(size) for picture in _cifar(data, part, count)]


def collages(data: Path, part: int, count: int, size: tuple[int, int]) -> list[Image.Image]:
    pictures = _cifar(data, part, max(_TILES) ** 2 * count)
    chance = np.random.default_rng(part)
    made = []
    for _ in range(count):
        tiles = int(chance.choice(_TILES))
        made.append(_collage([pictures[at] for at in chance.choice(len(pictures), tiles**2, replace=False)], size))
    return made


def photographs(data: Path, part: int, count: int, size: tuple[int, int]) -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    scenes = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    chance = np.random.default_rng(part)
    made = []
    for number in range(count):
        scene = scenes[number % len(scenes)]
        left, right = (int(share * scene.width) for share in _STRIPES[part])
        side = int(chance.integers(_LEAST_CROP, min(scene.height, right - left) + 1))
        x, y = int(chance.integers(left, right - side + 1)), int(chance.integers(0, scene.height - side + 1))
        made.append(scene.crop((x, y, x + side, y + side)).resize(size))
    return made


KINDS: dict[str, Callable[[Path, int, int, tuple[int, int]], list[Image.Image]]] = {
    "enlarged": enlarged,
    "collages": collages,
    "photographs": photographs,
}


def picture_set(data: Path, kind: str, count: int, shape: tuple[int, ...], scale: float) -> ImageDataset:
    """`count` pictures of `shape` (channels×height×width), 80 % to train on, the rest shared by validation and test."""
    channels, height, width = shape
    sizes = {TRAIN: int(0.8 * count), VAL: int(0.9 * count) - int(0.8 * count), TEST: count - int(0.9 * count)}
    splits = [
        Split(_stacked(KINDS[kind](data, part, size, (width, height)), channels), None) for part, size in sizes.items()
    ]
    return ImageDataset("pictures", None, *splits, None, scale)


def save_npz(dataset: ImageDataset, path: Path) -> None:
    """The pictures as a dataset that a job takes."""
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    images = np.concatenate([part.images.numpy() for part in parts.values()])
    np.savez(path, images=images, split=np.repeat(list(parts), [len(part) for part in parts.values()]))


def _cifar(data: Path, part: int, count: int) -> list[Image.Image]:
    """At most so many pictures: those of train and validation from the two ends of one file, of test from another."""
    (path,) = (data / "cifar10").glob("test-*.parquet" if part == TEST else "train-00000-*.parquet")
    column = parquet.read_table(path, columns=["image"])["image"]
    count = min(count, len(column) // 2)
    rows = column.slice(len(column) - count if part == VAL else 0, count)
    return [Image.open(io.BytesIO(row.as_py())).convert("RGB") for row in rows]


def _collage(pictures: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    """A square number of pictures, row after row, on one of `size` (width, height)."""
    width, height = size
    made, tiles = Image.new("RGB", size), round(len(pictures) ** 0.5)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, tiles)
        left, right = column * width // tiles, (column + 1) * width // tiles
        top, bottom = row * height // tiles, (row + 1) * height // tiles
        made.paste(picture.resize((right - left, bottom - top)), (left, top))
    return made


def _stacked(pictures: list[Image.Image], channels: int) -> Tensor:
    """[n, channels, height, width] uint8."""
    pixels = np.stack([np.asarray(one.convert("L" if channels == 1 else "RGB")) for one in pictures])
    images = torch.from_numpy(pixels)
    return images[:, None] if channels == 1 else images.permute(0, 3, 1, 2).contiguous()
