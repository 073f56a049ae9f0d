"""Walk a network's graph and emit ONNX for every call.

What depends on weights alone is computed now and stored as one tensor; a batch-norm behind a convolution goes into the
convolution's weights; sizes that depend on the batch stay sizes. Torch's own exporter traces a network several times
over to learn what this graph already says (operators, shapes, names), which takes seconds even for small networks; it
remains the way for the calls that no rule covers (`Uncovered`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import onnx
import torch
from torch.fx import Node
from torch.fx.node import map_arg

from core.analysis.schema import bind, is_aten, operator_name
from core.deliver.onnx_graph.aliases import Aliases, written_operand
from core.deliver.onnx_graph.builder import GraphBuilder
from core.deliver.onnx_graph.call import Call, Live, Size, Uncovered, Value
from core.deliver.onnx_graph.fusion import Fusions, fusions
from core.deliver.onnx_graph.opsets import DEFAULT_OPSET, NotInOpset
from core.deliver.onnx_graph.rules import RULES
from core.network import Network

_SIZE_OPERATORS = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul", operator.floordiv: "Div"}
# Calls that take nothing from their tensor but its type.
_NEW = frozenset({"new_zeros", "new_ones", "new_full"})


def emit(network: Network, *, fold: bool = True, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The network as a model whose initializers have the network's tensor names. Raises Uncovered.

    Inputs and outputs have the network's names and a dynamic batch axis. fold: batch-norms into convolutions, and
    transposed matrices into what is stored.
    """
    return _Emitter(network, fold, opset).model()


class _Emitter:
    def __init__(self, network: Network, fold: bool, opset: int) -> None:
        self._network = network
        self._inputs = iter(network.inputs)
        self._builder = GraphBuilder(network.inputs, opset, own_weights=not fold)
        self._builder.reserve([spec.name for spec in network.outputs])
        self._aliases = Aliases(network.graph)
        self._fusions = fusions(network) if fold else Fusions({}, frozenset())
        self._values: dict[Node, Value] = {}

    def model(self) -> onnx.ModelProto:
        results: list[str] = []
        rows: list[int] = []
        with torch.no_grad():
            for node in self._network.graph.nodes:
                self._builder.scope = node.name
                if node.op == "output":
                    results = [self._result(value) for value in node.args[0]]
                    rows = [value.meta["value"].shape[0] for value in node.args[0]]
                else:
                    self._set(node, self._covered_value(node))
        return self._builder.model(results, self._network.outputs, rows)

    def _covered_value(self, node: Node) -> Value:
        try:
            return self._value(node)
        except Uncovered:
            raise
        except NotInOpset as reason:
            raise Uncovered(node, str(reason)) from reason
        except Exception as error:
            raise Uncovered(node, f"{type(error).__name__}: {error}", is_fault=True) from error

    def _value(self, node: Node) -> Value:
        if node.op == "placeholder":
            return Live(next(self._inputs).name)
        if node.op == "get_attr":
            return self._network.tensors[node.target]
        if node in self._fusions.absorbed:
            return self._get(node.args[0])
        if node.target in _SIZE_OPERATORS:
            return self._size(node)
        if node.target is operator.getitem:
            return self._get(node.args[0])[node.args[1]]
        if not is_aten(node.target):
            raise Uncovered(node)
        raw = bind(node)
        values = {name: map_arg(argument, self._get) for name, argument in raw.items()}
        if operator_name(node.target) in _NEW:
            values["self"] = torch.empty(0, dtype=raw["self"].meta["value"].dtype)
            if _known_now(values.values()):
                return node.target(**values)
        if _known_now(values.values()):
            return self._computed(node)
        rule = RULES.get(_plain_name(node))
        if rule is None or not self._aliases.may_replace(node):
            raise Uncovered(node)
        fused = self._fusions.into.get(node)
        if fused is not None:
            raw, values = {**raw, "bias": fused.bias_name}, {**values, "weight": fused.weight, "bias": fused.bias}
        return _live(rule(Call(node, self._builder, raw, values)))

    def _computed(self, node: Node) -> Value:
        """The call's result from known tensors alone. What it writes into is never a tensor of the network itself."""
        written = written_operand(node)
        copied = written is not None and self._aliases.memory(written).op == "get_attr"
        if copied and not self._aliases.may_replace(node):
            raise Uncovered(node)

        def known(argument: Node) -> Any:
            value = self._get(argument)
            return value.clone() if copied and argument is written else value

        return node.target(*map_arg(node.args, known), **map_arg(node.kwargs, known))

    def _size(self, node: Node) -> Value:
        left, right = (self._get(a) if isinstance(a, Node) else a for a in node.args)
        if isinstance(left, int) and isinstance(right, int):
            return node.target(left, right)
        names = [size.name if isinstance(size, Size) else self._builder.integers([size]) for size in (left, right)]
        return Size(self._builder.add(_SIZE_OPERATORS[node.target], *names))

    def _result(self, node: Node) -> str:
        value = self._get(node)
        if not isinstance(value, Live):
            raise Uncovered(node, "an output that depends on no input")
        return value.name

    def _get(self, node: Node) -> Value:
        return self._values[self._aliases.owner(node)]

    def _set(self, node: Node, value: Value) -> None:
        self._values[self._aliases.owner(node)] = value


def _plain_name(node: Node) -> str:
    """The operator's name; in place or not is all the same here."""
    name = operator_name(node.target)
    return name if name.startswith("_") else name.removesuffix("_")


def _known_now(values: Iterable[Any]) -> bool:
    """Whether a call needs nothing that is only known when the network runs."""
    return not any(isinstance(leaf, (Live, Size)) for leaf in torch.utils._pytree.tree_leaves(list(values)))


def _live(value: Any) -> Value:
    if isinstance(value, str):
        return Live(value)
    return tuple(_live(item) for item in value) if isinstance(value, tuple) else value
