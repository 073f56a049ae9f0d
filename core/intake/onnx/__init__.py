"""ONNX in: our own reader of `ModelProto`s, and one table of handlers from ONNX operators to ATen calls."""

from core.intake.onnx.importing import read_onnx

__all__ = ["read_onnx"]
