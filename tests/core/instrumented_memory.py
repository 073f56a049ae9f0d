"""The buffer model executed for real: storages are allocated, reused and freed, and their live bytes are counted.

Whether a result shares its operand's memory is what PyTorch's schemas and storages say, not what the model under test
says. Only in-place reuse is forced, for the operators that the model lets overwrite their input.
"""

from __future__ import annotations

import operator

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from core.network import Network

# The operators of the test networks that run in place when nobody else reads their input.
_IN_PLACE = {
    "batch_norm", "relu", "relu_", "relu6", "silu", "elu", "leaky_relu", "hardswish", "sigmoid", "dropout", "dropout_",
    "feature_dropout", "tanh", "hardtanh", "hardtanh_",
}  # fmt: skip


def measured_peak(network: Network) -> int:
    """Run one image with real storages, freeing each after its last reader, and return the largest live byte count."""
    nodes = list(network.graph.nodes)
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.tensors.values()}
    inputs = (node for node in nodes if node.op == "placeholder")
    values: dict[Node, object] = dict(zip(inputs, network.random_inputs(1, 0), strict=True))
    peak = 0
    for index, node in enumerate(nodes):
        if node.op == "get_attr":
            values[node] = network.tensors[node.target]
        elif node.op == "call_function":
            values[node] = _execute(node, nodes[index + 1 :], values)
        live = {}
        for value in values.values():
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    live[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        peak = max(peak, sum(size for pointer, size in live.items() if pointer not in weights))
        unread = [one for one in values if not any(user in nodes[index + 1 :] for user in one.users)]
        for one in unread:
            del values[one]
    return peak


def _execute(node: Node, later: list[Node], values: dict[Node, object]) -> object:
    result = node.target(*map_arg(node.args, values.get), **map_arg(node.kwargs, values.get))
    if node.target is operator.getitem or not isinstance(result, Tensor):
        return result
    returns = node.target._schema.returns[0]
    is_view = returns.alias_info is not None and not returns.alias_info.is_write
    source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    operands = [one for one in node.all_input_nodes if isinstance(values[one], Tensor)]
    reuses = node.target._schema.name.removeprefix("aten::") in _IN_PLACE or (
        len(operands) == 1 and node.target._schema.name in ("aten::mul", "aten::add", "aten::add_", "aten::div")
    )
    if reuses and not _read_later(values[source], later, values):
        storage = values[source]
        if result.data_ptr() != storage.data_ptr():
            storage.copy_(result)
        return storage
    return result if is_view else result.clone()


def _read_later(tensor: Tensor, later: list[Node], values: dict[Node, object]) -> bool:
    pointer = tensor.untyped_storage().data_ptr()
    return any(
        isinstance(values.get(argument), Tensor) and values[argument].untyped_storage().data_ptr() == pointer
        for node in later
        for argument in node.all_input_nodes
    )
