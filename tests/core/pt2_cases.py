"""Networks as `.pt2` files, for the tests that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Small(nn.Module):
    """A convolution, then what a test does with its features."""

    def __init__(self, after: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.after = after

    def forward(self, image: torch.Tensor) -> Any:
        return self.after(self.conv(image))


def saved(
    module: nn.Module,
    path: Path,
    *,
    batch: int | None = None,
    shape: tuple[int, ...] = (3, 8, 8),
    dtype: torch.dtype = torch.float32,
    spatial: bool = False,
    training: bool = False,
) -> Path:
    """Exported for `batch` images, or for any number."""
    axes = {0: torch.export.Dim("batch")} | ({2: torch.export.Dim("height", min=4)} if spatial else {})
    example = (torch.zeros((batch or 2, *shape), dtype=dtype),)
    program = torch.export.export(module.train(training), example, dynamic_shapes=None if batch else (axes,))
    torch.export.save(program, path)
    return path
