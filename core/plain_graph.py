"""A network as plain values, so that it can be sent to another process of this engine.

Operators are known to torch by name; everything else that a node holds is numbers, types and names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from core.network import Network

_META = ("value", "path")


@dataclass(frozen=True)
class _At:
    """In place of a node: its position in the graph."""

    position: int


@dataclass(frozen=True)
class _Operator:
    """In place of an operator of torch: `aten`, `conv2d`, `default`."""

    namespace: str
    name: str
    overload: str

    def found(self) -> Any:
        return getattr(getattr(getattr(torch.ops, self.namespace), self.name), self.overload)


@dataclass(frozen=True)
class PlainNetwork:
    """Can be pickled. nodes: (op, target, args, kwargs, name, meta) in order. others: the network's other fields."""

    nodes: tuple[tuple[Any, ...], ...]
    others: Mapping[str, Any]

    @staticmethod
    def of(network: Network) -> PlainNetwork:
        positions = {node: _At(index) for index, node in enumerate(network.graph.nodes)}

        def plain(value: Any) -> Any:
            return positions[value] if isinstance(value, Node) else value

        nodes = tuple(
            (
                node.op,
                _plain_target(node.target),
                map_aggregate(node.args, plain),
                map_aggregate(node.kwargs, plain),
                node.name,
                {key: node.meta[key] for key in _META if key in node.meta},
            )
            for node in network.graph.nodes
        )
        others = {field.name: getattr(network, field.name) for field in fields(network) if field.name != "graph"}
        return PlainNetwork(
            nodes, {**others, **{name: dict(others[name]) for name in ("tensors", "architecture_args")}}
        )

    def network(self) -> Network:
        graph = Graph()
        made: list[Node] = []

        def real(value: Any) -> Any:
            return made[value.position] if isinstance(value, _At) else value

        for op, target, args, kwargs, name, meta in self.nodes:
            target = target.found() if isinstance(target, _Operator) else target
            node = graph.create_node(op, target, map_aggregate(args, real), map_aggregate(kwargs, real), name)
            node.meta.update(meta)
            made.append(node)
        graph.lint()
        network = Network(graph=graph, **self.others)
        return replace(network, tensors=MappingProxyType(dict(network.tensors)))


def _plain_target(target: Any) -> Any:
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return _Operator(namespace, name, target._overloadname)
    return target
