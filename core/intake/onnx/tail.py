"""The tail: what follows the network and is not one result per image, kept as the ONNX nodes that it is.

Detectors end in NonMaxSuppression, which ATen lacks and whose result has no batch axis; others squeeze the batch away at the
very end. Such nodes, and everything after them, become the *tail*: a small ONNX model of their own, from the values
where the network is cut to the outputs of the file. The network has those values as its outputs; they are frozen, as all
outputs are. `model.onnx` gets the tail back behind the smaller network; `model.py` returns the values before it.

A tail holds no layer: weights that the engine cannot see are not compressed, so a graph whose layers would end up there
is refused, naming the node where it begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

TAIL_OPERATORS = frozenset(
    {"NonMaxSuppression", "NonZero", "Compress", "GatherND", "ScatterND", "ScatterElements", "OneHot", "Unique", "RoiAlign"}
)
LAYER_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Einsum"})
HEAD_PREFIX = "network/"


def build_tail(
    model: onnx.ModelProto, opset: int, nodes: Sequence[onnx.NodeProto], sources: Mapping[str, onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """The tail as a model: inputs are `sources` (by name), outputs those of the file, with constants that it reads."""
    read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    constants = [one for one in model.graph.initializer if one.name in read]
    graph = onnx.helper.make_graph(list(nodes), "tail", list(sources.values()), list(model.graph.output), constants)
    # Only the standard domain: the file's other imports are unused, or it would have been refused.
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=min(model.ir_version, 10))
