"""Activation buffers and their lifetimes, read off the graph alone by the rules of `core.analysis.buffer_model`."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from core.analysis.buffer_model import FILLED, Layout, may_overwrite, source, view_layout
from core.network import TensorMeta


@dataclass(frozen=True)
class Buffer:
    """Storage allocated for (item `item` of) the result of `node`, live in steps birth … death, both included."""

    node: str
    item: int | None
    birth: int
    death: int


@dataclass(frozen=True)
class _Place:
    """Where a value lies: a buffer number (None: in a weight), and how."""

    buffer: int | None
    layout: Layout = FILLED


# A tensor's place, one per item of a tuple (None for an item that is no tensor), or None for a number.
_Places = _Place | tuple["_Place | None", ...] | None


def buffers(graph: Graph) -> list[Buffer]:
    """All activation buffers of one execution, with their lifetimes in node positions."""
    return _Allocator(graph).run()


class _Allocator:
    def __init__(self, graph: Graph) -> None:
        self._position = {node: index for index, node in enumerate(graph.nodes)}
        self._places: dict[Node, _Places] = {}
        self._origin: list[tuple[Node, int | None]] = []
        self._last_read: list[int] = []

    def run(self) -> list[Buffer]:
        for node in self._position:
            if node.op == "placeholder":
                self._occupy(node, self._allocate(node))
            elif node.op == "get_attr":
                self._places[node] = _Place(None)
            elif node.op == "call_function":
                self._occupy(node, self._result_place(node))
        return [
            Buffer(node.name, item, self._position[node], death)
            for (node, item), death in zip(self._origin, self._last_read, strict=True)
        ]

    def _result_place(self, node: Node) -> _Places:
        if node.target is operator.getitem:
            return self._places[node.args[0]][node.args[1]]
        operand = source(node)
        place = self._places[operand] if operand is not None else None
        if isinstance(place, _Place):
            layout = view_layout(node, place.layout)
            if layout is not None:
                results = node.meta["value"]
                view = _Place(place.buffer, layout)
                return (view,) * len(results) if isinstance(results, tuple) else view
            free = place.buffer is not None and self._last_read[place.buffer] <= self._position[node]
            if free and place.layout.whole and may_overwrite(node):
                return place
        return self._allocate(node)

    def _allocate(self, node: Node) -> _Places:
        value = node.meta["value"]
        if isinstance(value, tuple):
            return tuple(
                self._new(node, item) if isinstance(one, TensorMeta) else None for item, one in enumerate(value)
            )
        return self._new(node, None) if isinstance(value, TensorMeta) else None

    def _new(self, node: Node, item: int | None) -> _Place:
        self._origin.append((node, item))
        self._last_read.append(self._position[node])
        return _Place(len(self._origin) - 1)

    def _occupy(self, node: Node, places: Any) -> None:
        """Values keep their buffers alive until their own last reader."""
        self._places[node] = places
        last = max((self._position[user] for user in node.users), default=self._position[node])
        for place in places if isinstance(places, tuple) else (places,):
            if place is not None and place.buffer is not None:
                self._last_read[place.buffer] = max(self._last_read[place.buffer], last, self._position[node])
