"""A network's ATen graph as an ONNX graph, operator by operator."""

from core.deliver.onnx_graph.call import Uncovered
from core.deliver.onnx_graph.emitter import emit
from core.deliver.onnx_graph.opsets import DEFAULT_OPSET, FIRST_OPSET, LAST_OPSET, require_opset

__all__ = ["DEFAULT_OPSET", "FIRST_OPSET", "LAST_OPSET", "Uncovered", "emit", "require_opset"]
