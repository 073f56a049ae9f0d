"""Where a split's images are: a tensor, or a file of rows for those that are too many for memory.

A file is written once, while the upload is decoded, and then read row by row: the system's page cache holds as much of it
as there is room for. `StoredImages` says so much of a tensor's language that training and scoring need not know which of
the two they have: `shape`, `dtype`, `device`, `len`, `images[rows]`, `images.split(size)` and `images.to(device)`.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What a sample of stored images may take up in memory.
SAMPLE_BYTES = 512 * 2**20
# A GPU keeps what is left of its memory for the two networks and for the activations of a batch.
_SHARE_OF_GPU_MEMORY = 0.3
_CPU = torch.device("cpu")


class RowFile:
    """A file of rows of one shape and type, in the temporary folder; it goes when nobody refers to it any more.

    It keeps its name as long as it lives, so that whoever limits the folder's size can see it, and so that another process
    can read it, too: pickling it sends the name.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.row_shape, self.dtype = row_shape, dtype
        self._row_bytes = math.prod(row_shape) * dtype.itemsize
        self._file, self._name = tempfile.mkstemp(prefix="images-")
        self._rows = 0
        weakref.finalize(self, _discard, self._file, self._name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # It is the other process's file, and goes with that.
        self._file = os.open(self._name, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: np.ndarray) -> None:
        """Add [n, *row_shape] at the end."""
        data = memoryview(np.ascontiguousarray(rows, self.dtype)).cast("B")
        while data:
            data = data[os.write(self._file, data) :]
        self._rows += len(rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """[n, *row_shape] of the given row numbers, in their order; neighbours are read in one piece."""
        found = np.empty((len(rows), *self.row_shape), self.dtype)
        data = memoryview(found.reshape(-1).view(np.uint8))
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for start, end in itertools.pairwise([0, *breaks, len(rows)] if len(rows) else []):
            self._read_into(data[start * self._row_bytes : end * self._row_bytes], int(rows[start]) * self._row_bytes)
        return found

    def _read_into(self, data: memoryview, offset: int) -> None:
        while data:
            count = os.preadv(self._file, [data], offset)
            if count == 0:
                raise OSError(f"The file of decoded images ends at byte {offset:,}; something has cut it.")
            data, offset = data[count:], offset + count


def _discard(file: int, name: str) -> None:
    os.close(file)
    Path(name).unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class StoredImages:
    """[n, C, H, W] that are kept on the host, in a file or in a tensor, and arrive on `device` batch by batch.

    rows: [n] which rows of the source these are.
    """

    source: RowFile | Tensor
    rows: np.ndarray
    device: torch.device = _CPU

    @property
    def shape(self) -> torch.Size:
        own = self.source.row_shape if isinstance(self.source, RowFile) else self.source.shape[1:]
        return torch.Size((len(self.rows), *own))

    @property
    def dtype(self) -> torch.dtype:
        if isinstance(self.source, RowFile):
            return torch.uint8 if self.source.dtype == np.uint8 else torch.float32
        return self.source.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The images at `rows` (int64 [m] on any device, or a slice), on this object's device."""
        return self._on_device(self._read(rows if isinstance(rows, slice) else rows.cpu().numpy()))

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time; the next ones are read while these are used."""
        with ThreadPoolExecutor(1) as reader:
            starts = range(0, len(self), size)
            ahead = reader.submit(self._read, slice(0, size))
            for start in starts:
                images = ahead.result()
                ahead = reader.submit(self._read, slice(start + size, start + 2 * size))
                yield self._on_device(images)

    def to(self, device: torch.device) -> StoredImages:
        return StoredImages(self.source, self.rows, torch.device(device))

    def _read(self, rows: np.ndarray | slice) -> Tensor:
        chosen = self.rows[rows]
        if isinstance(self.source, RowFile):
            return torch.from_numpy(self.source.read(chosen))
        return self.source[torch.from_numpy(chosen)]

    def _on_device(self, images: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device)


Images = Tensor | StoredImages


@dataclass(frozen=True)
class Split:
    """images: [n, C, H, W], uint8 or float32. labels: [n] int64, or None."""

    images: Images
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Split:
        """On `device`: labels, and the images where they fit; else they stay on the host and go over batch by batch."""
        images, device = self.images, torch.device(device)
        if isinstance(images, Tensor) and images.device != device and not _fits(images, device):
            images = StoredImages(images, np.arange(len(images)))
        return Split(images.to(device), self.labels.to(device) if self.labels is not None else None)

    def sample(self, count: int) -> Split:
        """At most `count` examples, evenly spaced (stored datasets are often sorted by class), with images in memory."""
        in_memory = isinstance(self.images, Tensor)
        if not in_memory:
            count = min(count, max(1, SAMPLE_BYTES // (math.prod(self.images.shape[1:]) * self.images.dtype.itemsize)))
        if count >= len(self) and in_memory:
            return self
        count = min(count, len(self))
        rows = torch.arange(count, device=self.images.device) * len(self) // count
        return Split(self.images[rows], self.labels[rows] if self.labels is not None else None)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    _, total_bytes = torch.cuda.mem_get_info(device)
    return images.nbytes <= _SHARE_OF_GPU_MEMORY * total_bytes
