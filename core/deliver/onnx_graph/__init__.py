"""A network's ATen graph as an ONNX graph, operator by operator."""

from core.deliver.onnx_graph.builder import OPSET
from core.deliver.onnx_graph.call import Uncovered
from core.deliver.onnx_graph.emitter import emit

__all__ = ["OPSET", "Uncovered", "emit"]
