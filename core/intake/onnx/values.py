"""What the importer computes with: values that are known now, and values of the network.

Both come twice: at batch 1 and at batch `MANY`. Sizes that a graph computes (Shape, Gather, Concat …) are so known for
both, and whatever differs between the two depends on the batch. That is how a graph with a dynamic batch stays dynamic
and how one that has batch 1 written into its constants is generalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

MANY = 3


class NotPerImage(Exception):
    """What a node computes cannot be said for any number of images: it goes to the tail, or the graph is refused."""


class Unsupported(Exception):
    """A use of an operator that has no exact form here; the message names the attribute and its value."""


class _Sizes:
    one: Tensor
    many: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """At batch 1."""
        return tuple(self.one.shape)

    @property
    def shape_many(self) -> tuple[int, ...]:
        return tuple(self.many.shape)

    @property
    def rank(self) -> int:
        return self.one.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.one.dtype

    @property
    def is_float(self) -> bool:
        return self.one.is_floating_point()

    def axis(self, axis: int) -> int:
        """The non-negative form of `axis`, checked."""
        if not -self.rank <= axis < max(self.rank, 1):
            raise Unsupported(f"axis {axis} of a value with {self.rank} dimensions")
        return axis % max(self.rank, 1)

    @property
    def batch_axis(self) -> int | None:
        """The axis that grows with the batch, None for constants. Raises NotPerImage where several do."""
        axes = [
            axis for axis, sizes in enumerate(zip(self.shape, self.shape_many, strict=True)) if sizes[0] != sizes[1]
        ]
        if len(axes) > 1 or (axes and self.shape_many[axes[0]] != MANY * self.shape[axes[0]]):
            raise NotPerImage("its sizes are not proportional to the batch size")
        return axes[0] if axes else None

    def require_whole_images(self, axes: object, what: str) -> None:
        """Raises NotPerImage where one of `axes` counts images."""
        if self.batch_axis is not None and self.batch_axis in {self.axis(axis) for axis in axes}:
            raise NotPerImage(f"it {what} over the batch axis")


@dataclass(frozen=True, eq=False)
class Known(_Sizes):
    """A constant, or a number computed from sizes. `name`: its initializer, where it is one unchanged."""

    one: Tensor
    many: Tensor
    name: str = ""
    trainable: bool = False

    @staticmethod
    def of(value: Tensor, name: str = "", *, trainable: bool = False) -> Known:
        return Known(value, value, name, trainable)

    @property
    def fixed(self) -> bool:
        """Whether it is the same for every batch size."""
        return self.one is self.many or torch.equal(self.one, self.many)

    def integers(self) -> tuple[int, ...]:
        """Its elements. Raises NotPerImage where they depend on the batch."""
        if not self.fixed:
            raise NotPerImage("it reads a number that depends on the batch size")
        return tuple(int(item) for item in self.one.reshape(-1).tolist())

    def scalar(self) -> float | int | bool | None:
        """Its value if it is a single number, the same for every batch size."""
        return self.one.reshape(-1)[0].item() if self.one.numel() == 1 and self.fixed else None


@dataclass(frozen=True, eq=False)
class Computed(_Sizes):
    """A node of the network, with meta tensors of its result."""

    node: Node
    one: Tensor
    many: Tensor


@dataclass(frozen=True, eq=False)
class BatchInt:
    """An integer that is `per_image` times the batch size."""

    node: Node
    per_image: int


Value = Known | Computed
