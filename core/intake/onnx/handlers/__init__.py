"""Operator handlers: one per ONNX operator, from its node to ATen calls.

    HANDLERS["Conv"](builder, node) -> the value of its output, or a tuple of the values of its outputs

A handler raises `Unsupported` for a use that it has no exact form for, naming it, and `NotPerImage` where the result is
not one per image of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core.intake.onnx.builder import Builder
from core.intake.onnx.handlers import (
    constants,
    convolution,
    elementwise,
    matrix,
    normalisation,
    parts,
    pooling,
    reduction,
    resize,
    shapes,
)
from core.intake.onnx.node import OnnxNode

Handler = Callable[[Builder, OnnxNode], Any]

HANDLERS: Mapping[str, Handler] = {
    **convolution.HANDLERS,
    **matrix.HANDLERS,
    **normalisation.HANDLERS,
    **pooling.HANDLERS,
    **resize.HANDLERS,
    **elementwise.HANDLERS,
    **shapes.HANDLERS,
    **parts.HANDLERS,
    **reduction.HANDLERS,
    **constants.HANDLERS,
}
