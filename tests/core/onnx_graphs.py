"""Small ONNX graphs for the tests of the importer: a convolution, so that there are weights, then what is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE = 4, 6


class GraphMaker:
    """Collects nodes and constants; `x` is the input [batch, 3, 6, 6], `h` a 1×1 convolution of it with 4 channels."""

    def __init__(self, opset: int, *, size: tuple[int, ...] = (SIZE, SIZE), batch: int | str = "n") -> None:
        self.opset = opset
        self.size = size
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = 0
        self._random = np.random.default_rng(0)
        weight = self.weight(CHANNELS, 3, *[1] * len(size))
        self.h = self.add("Conv", "x", weight, self.weight(CHANNELS))

    def weight(self, *shape: int, positive: bool = False) -> str:
        values = self._random.standard_normal(shape).astype(np.float32)
        return self.constant(np.abs(values) + 0.5 if positive else values)

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        array = values if isinstance(values, np.ndarray) else np.array(values, dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"v{self._count + index}" for index in range(outputs)]
        self._count += outputs
        given = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(
            helper.make_node(operator, list(inputs), names, name=f"{operator}_{self._count}", domain=domain, **given)
        )
        return names[0] if outputs == 1 else names

    def model(self, *outputs: str, types: Mapping[str, int] | None = None) -> onnx.ModelProto:
        """The file; outputs are declared with as many open axes as ONNX Runtime says that they have."""
        undeclared = self._model([(name, None) for name in outputs], types or {})
        size = self.batch if isinstance(self.batch, int) else 1
        found = run_file(undeclared, x=np.zeros((size, 3, *self.size), np.float32))
        return self._model([(name, [None] * one.ndim) for name, one in zip(outputs, found, strict=True)], types or {})

    def _model(self, outputs: Sequence[tuple[str, list[None] | None]], types: Mapping[str, int]) -> onnx.ModelProto:
        declared = [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape) for name, shape in outputs
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.batch, 3, *self.size])
        graph = helper.make_graph(self.nodes, "g", [x], declared, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def bytes_of(model: onnx.ModelProto) -> memoryview:
    return memoryview(model.SerializeToString())


def run_file(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime computes, without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
