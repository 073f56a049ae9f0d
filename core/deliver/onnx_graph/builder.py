"""An ONNX graph under construction: nodes in order, tensors under unique names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from core.deliver.onnx_graph.opsets import DEFAULT_OPSET, OLDER
from core.network import TensorSpec
from core.version import VERSION

_ELEMENT_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
}


class GraphBuilder:
    """Collects nodes and initializers; every name is given out once. What an older opset says otherwise is said so."""

    def __init__(self, inputs: Sequence[TensorSpec], opset: int = DEFAULT_OPSET, *, own_weights: bool = False) -> None:
        """own_weights: whether matrices are stored as the network has them and turned while it runs."""
        self.opset, self.own_weights = opset, own_weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._names: set[str] = set()
        self._inputs = tuple(inputs)
        # What is emitted next belongs to this value of the network's graph: names begin with it.
        self.scope = ""
        for spec in inputs:
            self._names.add(spec.name)

    def reserve(self, names: Sequence[str]) -> None:
        """Keep names for the outputs, which are only known at the end."""
        self._names.update(names)

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; the name of its output, or a tuple of names if `outputs` is more than one. "" leaves out an input.

        Raises NotInOpset.
        """
        since, older = OLDER.get(operator, (0, None))
        if older is not None and self.opset < since:
            return older(self, operator, inputs, {**attributes, "outputs": outputs} if outputs > 1 else attributes)
        return self.write(operator, *inputs, outputs=outputs, **attributes)

    def write(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """As `add`, of an operator that is as it is in this opset."""
        names = [self._unique(self.scope or operator) for _ in range(outputs)]
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        given = {name: value for name, value in attributes.items() if value is not None}
        self._nodes.append(helper.make_node(operator, inputs, names, name=f"{names[0]}/{operator}", **given))
        return names[0] if outputs == 1 else tuple(names)

    def tensor(self, value: Tensor, name: str) -> str:
        """The name of an initializer with this value, made under `name` or, if that is taken, a name like it."""
        array = value.detach().cpu().contiguous().numpy()
        unique = self._unique(name)
        self._initializers[unique] = numpy_helper.from_array(array, unique)
        return unique

    def integers(self, values: Sequence[int]) -> str:
        """A one-dimensional int64 initializer; equal ones are made once."""
        name = "int64_" + "_".join(map(str, values)).replace("-", "m")
        if name not in self._initializers:
            self._names.add(name)
            self._initializers[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def known_integers(self, name: str) -> list[int]:
        """The values of an initializer that `integers` made."""
        return numpy_helper.to_array(self._initializers[name]).tolist()

    def scalar(self, value: float, dtype: torch.dtype) -> str:
        """An initializer of no axes."""
        return self.tensor(torch.tensor(value, dtype=dtype), f"{self.scope}_constant")

    def element_type(self, dtype: torch.dtype) -> int | None:
        """ONNX's number of an element type, None where it has no such type here."""
        return _ELEMENT_TYPES.get(dtype)

    def model(self, results: Sequence[str], outputs: Sequence[TensorSpec], rows: Sequence[int]) -> onnx.ModelProto:
        """The finished model, whose outputs are the values `results` under the names of `outputs`.

        rows: of each output, how long its first axis is for one image; only where that is 1 is it the batch.
        """
        self.scope = ""
        for result, spec in zip(results, outputs, strict=True):
            self._nodes.append(helper.make_node("Identity", [result], [spec.name], name=f"{spec.name}/Identity"))
        self._absorb_identities(len(results))
        read = {name for node in self._nodes for name in node.input}
        graph = helper.make_graph(
            self._nodes,
            "network",
            [self._value_info(spec) for spec in self._inputs],
            [self._value_info(spec, "batch" if row == 1 else None) for spec, row in zip(outputs, rows, strict=True)],
            [tensor for name, tensor in self._initializers.items() if name in read],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        # The oldest file format that has the opset: newer ones say nothing more about it, and older readers refuse them.
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
        model.producer_name, model.producer_version = "pennyweight", VERSION
        return model

    def _absorb_identities(self, count: int) -> None:
        """Let the node that computes an output write it under the output's name, unless two outputs are one value."""
        identities = self._nodes[-count:]
        renamed: dict[str, str] = {}
        made = {name for node in self._nodes[:-count] for name in node.output}
        kept = []
        for node in identities:
            (source,) = node.input
            if source in made and source not in renamed:
                renamed[source] = node.output[0]
            else:
                kept.append(node)
        self._nodes[-count:] = kept
        for node in self._nodes:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]

    def _value_info(self, spec: TensorSpec, first: str | None = "batch") -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, _ELEMENT_TYPES[spec.dtype], [first, *spec.shape])

    def _unique(self, name: str) -> str:
        found, number = name, 0
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found
