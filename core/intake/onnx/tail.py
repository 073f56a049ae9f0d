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

import numpy as np
import onnx
import torch
from torch import Tensor

from core.network import TensorSpec

TAIL_OPERATORS = frozenset(
    {
        "NonMaxSuppression",
        "NonZero",
        "Compress",
        "GatherND",
        "ScatterND",
        "ScatterElements",
        "OneHot",
        "Unique",
        "RoiAlign",
    }
)
LAYER_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Einsum"})


def build_tail(
    model: onnx.ModelProto,
    opset: int,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, TensorSpec],
    renamed: Mapping[str, str],
    constants: Mapping[str, Tensor],
) -> bytes:
    """The tail as a model: `inputs` are values of the network, its outputs those of the file, in their order.

    renamed: other names for inputs, which outputs or nodes of the tail use. constants: numbers that the nodes read.
    """
    make = onnx.helper
    declared = [
        make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(_numpy(spec)), [None] * (1 + len(spec.shape)))
        for name, spec in inputs.items()
    ]
    copies = [make.make_node("Identity", [source], [name]) for name, source in renamed.items()]
    stored = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()]
    graph = make.make_graph([*copies, *nodes], "tail", declared, list(model.graph.output), stored)
    version = min(model.ir_version, 10) if model.ir_version >= 4 else 4
    return make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=version).SerializeToString()


def _numpy(spec: TensorSpec) -> np.dtype:
    return torch.empty(0, dtype=spec.dtype).numpy().dtype
