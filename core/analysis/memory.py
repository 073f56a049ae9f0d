"""Peak activation memory: one buffer model, used for planning, profiling and checking alike.

Batch 1, graph order, float32. Inputs and outputs count. Every call allocates its result, except

- views (view, transpose, slice, split, …) and conversions to the same type, which share their input's buffer;
  `reshape`, `flatten` and `contiguous` copy where a permutation, slice or expansion has disturbed the order of elements
  since the buffer was filled;
- batch-norm, dropout and element-wise operators with one tensor operand, whose input buffer has no later reader: they
  reuse it, whatever the in-place flags say.

A buffer dies after the last reader of any value in it. Weights are no activations. There is no workspace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from core.analysis.handlers import elementwise
from core.analysis.schema import bind, is_aten, operator_name
from core.network import TensorMeta

ORDERED_VIEWS = frozenset({"view", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "detach", "alias", "copy"})
COPYING_VIEWS = frozenset({"reshape", "flatten", "contiguous"})
CONVERSIONS = frozenset({"to", "type_as"})
PERMUTING_VIEWS = frozenset({"permute", "transpose", "t", "numpy_T"})
NARROWING_VIEWS = frozenset({"slice", "select", "split", "chunk", "split_with_sizes", "tensor_split", "unbind"})
EXPANDING_VIEWS = frozenset({"expand", "expand_as"})


@dataclass(frozen=True)
class Buffer:
    """Storage allocated for (item `item` of) the result of `node`, live in steps birth … death, both included."""

    node: str
    item: int | None
    birth: int
    death: int


@dataclass(frozen=True)
class _Place:
    """Where a value lives: a buffer number (None: in a weight), and how it lies in it."""

    buffer: int | None
    ordered: bool = True
    expanded: bool = False


def buffers(graph: Graph) -> list[Buffer]:
    """All activation buffers of one execution, with their lifetimes in node positions."""
    nodes = list(graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last_read: list[int] = []
    origin: list[tuple[str, int | None, int]] = []
    places: dict[Node, Any] = {}

    def allocate(node: Node, item: int | None, birth: int) -> _Place:
        origin.append((node.name, item, birth))
        last_read.append(birth)
        return _Place(len(origin) - 1)

    def occupy(node: Node, place: Any) -> None:
        """Values keep their buffers alive until their own last reader."""
        places[node] = place
        for one in place if isinstance(place, tuple) else (place,):
            if isinstance(one, _Place) and one.buffer is not None:
                readers = [position[user] for user in node.users]
                last_read[one.buffer] = max(last_read[one.buffer], position[node], *readers)

    for index, node in enumerate(nodes):
        if node.op == "placeholder":
            occupy(node, allocate(node, None, 0))
        elif node.op == "get_attr":
            places[node] = _Place(None)
        elif node.op == "call_function":
            occupy(node, _result_place(node, index, places, last_read, allocate))
    return [Buffer(node, item, birth, death) for (node, item, birth), death in zip(origin, last_read, strict=True)]


def live_sets(graph: Graph) -> list[list[Buffer]]:
    """The live buffers of every step (node position)."""
    found = buffers(graph)
    steps: list[list[Buffer]] = [[] for _ in graph.nodes]
    for buffer in found:
        for step in range(buffer.birth, buffer.death + 1):
            steps[step].append(buffer)
    return steps


def _result_place(node: Node, index: int, places: Mapping[Node, Any], last_read: list[int], allocate: Any) -> Any:
    meta = node.meta["value"]
    name = operator_name(node.target)
    plain = name.removesuffix("_") if not name.startswith("_") else name
    if name == "getitem":
        source = places[node.args[0]]
        return source[node.args[1]] if isinstance(source, tuple) else source
    tensors = [argument for argument in node.all_input_nodes if _is_tensor(argument.meta["value"])]
    source = places[_first_tensor(node)] if tensors and is_aten(node.target) and _first_tensor(node) else None
    if isinstance(source, _Place):
        shared = _shared_place(node, plain, source)
        if shared is not None:
            return (shared,) * len(meta) if isinstance(meta, tuple) else shared
        one_operand = plain == "batch_norm" or (plain in elementwise.ELEMENTWISE and len(tensors) == 1)
        free = source.buffer is not None and last_read[source.buffer] <= index and not source.expanded
        if one_operand and free and isinstance(meta, TensorMeta):
            return source
    if isinstance(meta, tuple):
        return tuple(allocate(node, item, index) for item, one in enumerate(meta) if _is_tensor(one))
    return allocate(node, None, index) if _is_tensor(meta) else None


def _shared_place(node: Node, plain: str, source: _Place) -> _Place | None:
    """The place of a view of `source`, or None where the call makes a new buffer."""
    if plain in ORDERED_VIEWS:
        return source
    if plain in CONVERSIONS:
        return source if node.args[0].meta["value"].dtype == node.meta["value"].dtype else None
    if plain in COPYING_VIEWS:
        return source if source.ordered else None
    if plain in PERMUTING_VIEWS:
        return _Place(source.buffer, source.ordered and _keeps_order(node), source.expanded)
    if plain in EXPANDING_VIEWS:
        return _Place(source.buffer, False, True)
    if plain in NARROWING_VIEWS:
        # At batch 1, a range of channels is still one run of elements.
        shape = node.args[0].meta["value"].shape
        dim = bind(node)["dim"]
        outer = shape[: dim + len(shape) if dim < 0 else dim]
        return _Place(source.buffer, source.ordered and all(size == 1 for size in outer), source.expanded)
    return None


def _keeps_order(node: Node) -> bool:
    """Whether a permutation only moves axes of size 1."""
    arguments, shape = bind(node), node.args[0].meta["value"].shape
    order = list(range(len(shape)))
    if "dims" in arguments:
        order = [order[axis] for axis in arguments["dims"]]
    elif "dim0" in arguments:
        first, second = arguments["dim0"], arguments["dim1"]
        order[first], order[second] = order[second], order[first]
    else:
        order.reverse()
    long = [axis for axis in order if shape[axis] != 1]
    return long == sorted(long)


def _first_tensor(node: Node) -> Node | None:
    for argument in bind(node).values():
        if isinstance(argument, Node) and _is_tensor(argument.meta["value"]):
            return argument
        if isinstance(argument, (list, tuple)):
            return None
    return None


def _is_tensor(meta: Any) -> bool:
    return isinstance(meta, (TensorMeta, tuple))
