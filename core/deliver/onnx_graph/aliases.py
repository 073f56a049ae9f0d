"""Which nodes are one tensor, and whether a call that writes into one may be emitted as one that makes a new one.

`relu_(x)` changes x for everybody who reads it later, under whatever name. ONNX has no such thing: the new value takes
the place of the old one, which is the same wherever no *view* of the old one is read afterwards.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from core.analysis.schema import bind, is_aten, operator_name

# These give back their operand without saying so in their schema.
_UNDECLARED = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
_UNDECLARED_VIEWS = frozenset({"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "type_as"})
_SAME = frozenset({"detach", "alias", "lift_fresh"})


class Aliases:
    def __init__(self, graph: Graph) -> None:
        self._owner: dict[Node, Node] = {}
        self._memory: dict[Node, Node] = {}
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._last_reader = {node: max((self._order[user] for user in node.users), default=-1) for node in graph.nodes}
        self._sharing: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            source, same = _source(node)
            self._owner[node] = self._owner[source] if same else node
            self._memory[node] = self._memory[source] if source is not None else node
            self._sharing.setdefault(self._memory[node], []).append(node)

    def owner(self, node: Node) -> Node:
        """The first node that is the very same tensor: `x` for `relu_(x)`, itself for everything that is made anew."""
        return self._owner[node]

    def memory(self, node: Node) -> Node:
        """The node that made the memory that the value lies in."""
        return self._memory[node]

    def may_replace(self, node: Node) -> bool:
        """Whether what the call writes into is seen under no other name afterwards. True for calls that write nowhere."""
        written = written_operand(node)
        if written is None:
            return True
        now = self._order[node]
        return not any(
            self._owner[other] is not self._owner[written] and self._order[other] < now < self._last_reader[other]
            for other in self._sharing[self._memory[written]]
        )


def _source(node: Node) -> tuple[Node | None, bool]:
    """The operand that the result shares memory with, and whether it is that operand, whole and as it is."""
    written = written_operand(node)
    if written is not None:
        return written, True
    operand = next(iter(node.all_input_nodes), None)
    if node.op != "call_function" or operand is None:
        return None, False
    if not is_aten(node.target):
        # An item of a tuple: what the tuple shares memory with, it does.
        return operand, False
    name = operator_name(node.target)
    if name in _SAME or (name in _UNDECLARED and not bind(node)["train"]):
        return operand, True
    declared = any(returned.alias_info is not None for returned in node.target._schema.returns)
    return (operand, False) if declared or name in _UNDECLARED_VIEWS else (None, False)


def written_operand(node: Node) -> Node | None:
    """The operand that the call writes into."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if not node.target._schema.is_mutable:
        return None
    bound = bind(node)
    for argument in node.target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(bound[argument.name], Node):
            return bound[argument.name]
    return None
