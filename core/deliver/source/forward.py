"""The `forward` of a generated class: one statement per operation, few names, reused as values die.

Names are given by a linear scan over the graph: a result takes over the name of an operand that is read here for the
last time, else the first free one of x, y, z, x1, x2, … So a residual block reads `y = conv(x) … x = y + x`.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from core.analysis.schema import bind, operator_name
from core.deliver.source.calls import literal, print_call
from core.deliver.source.layout import Code, call, prefixed
from core.deliver.source.modules import ModuleTree, is_plain
from core.network import TensorMeta

_UNTIL_THE_END = 2**63 - 1
_RESERVED = frozenset({"self", "torch", "nn", "F"})


@dataclass(frozen=True)
class Forward:
    """Parameter names of `forward`, and its statements.

    A statement that opens a block of the original network comes with a comment ("" where there is nothing to say).
    """

    parameters: tuple[str, ...]
    statements: tuple[tuple[str | None, Code], ...]


def write_forward(tree: ModuleTree) -> Forward:
    return _Writer(tree).write()


class _Writer:
    def __init__(self, tree: ModuleTree) -> None:
        self.tree = tree
        nodes = list(tree.network.graph.nodes)
        self.inputs = [node for node in nodes if node.op == "placeholder"]
        self.output = nodes[-1]
        self.slices = _slices(nodes)
        self.unpacked = _unpacked(nodes)
        hidden = {inner for chain in self.slices.values() for inner in chain.absorbed}
        hidden |= {node for node, chain in self.slices.items() if not chain.axes}
        hidden |= {piece for pieces in self.unpacked.values() for piece in pieces}
        self.statements = [node for node in nodes if node.op == "call_function" and node not in hidden]
        self.last_read = self._last_reads()
        self.names: dict[Node, str] = {}
        self.living = list(self.inputs)
        owners = [name.rpartition(".")[0] for name in tree.network.tensors]
        self.containers = {parent for owner in owners for parent in _ancestors(owner)}

    def write(self) -> Forward:
        parameters = _parameter_names([spec.name for spec in self.tree.network.inputs])
        self.names.update(zip(self.inputs, parameters, strict=True))
        written: list[tuple[str | None, Code]] = []
        for section, group in itertools.groupby(enumerate(self.statements), lambda item: self._section(item[1])):
            members = list(group)
            comment: str | None = _comment(section, members[-1][1])
            for index, node in members:
                code = self._expression(node)
                written.append((comment, prefixed(self._targets(node, index), code)))
                comment = None
        results = ", ".join(str(self._value(result)) for result in self.output.args[0])
        comma = "," if len(self.output.args[0]) == 0 else ""
        return Forward(tuple(parameters), (*written, (None, f"return {results}{comma}")))

    def _expression(self, node: Node) -> Code:
        layer = self.tree.layer_of.get(node)
        if layer is not None:
            return call(self.tree.expression(layer.path), [self._value(layer.input)])
        if node in self.slices:
            return self.slices[node].code(self._value)
        return print_call(node, self._value)

    def _value(self, item: Any) -> Code:
        return literal(item, self._of_node)

    def _of_node(self, node: Node) -> str:
        node = self._resolve(node)
        return self.tree.expression(node.target) if node.op == "get_attr" else self.names[node]

    def _resolve(self, node: Node) -> Node:
        """The value that a slice of everything stands for."""
        while node in self.slices and not self.slices[node].axes:
            node = self.slices[node].source
        return node

    def _reads(self, node: Node) -> list[Node]:
        if node in self.slices:
            return [self._resolve(read) for read in (self.slices[node].source, *self.slices[node].bounds)]
        if node in self.tree.layer_of:
            return [self._resolve(self.tree.layer_of[node].input)]
        return [self._resolve(read) for read in node.all_input_nodes]

    def _last_reads(self) -> dict[Node, int]:
        last: dict[Node, int] = {}
        for index, node in enumerate(self.statements):
            last.update(dict.fromkeys(self._reads(node), index))
        last.update(dict.fromkeys((self._resolve(result) for result in self.output.args[0]), len(self.statements)))
        return last

    def _targets(self, node: Node, index: int) -> str:
        """`x = ` or `x, y = `, or nothing where only the effect of the call is wanted; names the results."""
        results = [node] if node in self.last_read else self.unpacked.get(node, [])
        for result in results:
            self.names[result] = self._name(result, self._reads(node), index)
            self.living.append(result)
        return ", ".join(self.names[result] for result in results) + " = " * bool(results)

    def _name(self, node: Node, reads: Sequence[Node], index: int) -> str:
        # What nobody reads from here on is never read again.
        self.living = [other for other in self.living if self.last_read.get(other, -1) > index]
        live = {self.names[other] for other in self.living}
        fixed = {self.names[read] for read in self.inputs}
        if not isinstance(node.meta.get("value"), TensorMeta):
            kind = "parts" if isinstance(node.meta.get("value"), tuple) else _size_name(node)
            return next(name for name in _numbered(kind) if name not in live | fixed)
        dying = {self.names[read] for read in reads if read in self.names} - live
        pool = list(itertools.islice(_tensor_names(), len(live | fixed) + 1))
        return next((name for name in pool if name in dying), None) or next(
            name for name in pool if name not in live | fixed
        )

    def _section(self, node: Node) -> str:
        """The block of the original network that a statement belongs to: its path up to the first run of numbers."""
        path = node.meta.get("path", "")
        block = path if path in self.containers else path.rpartition(".")[0]
        parts = block.split(".")
        numbered = itertools.dropwhile(lambda i: not parts[i].isdigit(), range(len(parts)))
        end = next((i for i in numbered if not parts[i].isdigit()), len(parts))
        return ".".join(parts[:end])


@dataclass(frozen=True)
class _Slice:
    """Slices along different axes of one value, as one index expression; no axes where they take everything."""

    source: Node
    axes: Mapping[int, tuple[Any, Any, int]]
    absorbed: tuple[Node, ...]

    @property
    def bounds(self) -> list[Node]:
        return [bound for axis in self.axes.values() for bound in axis if isinstance(bound, Node)]

    def code(self, value: Any) -> str:
        texts = []
        for axis in range(max(self.axes) + 1):
            start, end, step = self.axes.get(axis, (None, None, 1))
            texts.append(
                ("" if start in (None, 0) else str(value(start)))
                + ":"
                + ("" if end in (None, _UNTIL_THE_END) else str(value(end)))
                + ("" if step == 1 else f":{step}")
            )
        return f"{value(self.source)}[{', '.join(texts)}]"


def _slices(nodes: Sequence[Node]) -> dict[Node, _Slice]:
    found: dict[Node, _Slice] = {}
    for node in nodes:
        if node.op != "call_function" or operator_name(node.target) != "slice":
            continue
        bound = bind(node)
        source, meta = bound["self"], bound["self"].meta.get("value")
        if not isinstance(meta, TensorMeta):
            continue
        everything = bound["start"] in (None, 0) and bound["end"] in (None, _UNTIL_THE_END) and bound["step"] == 1
        axis = bound["dim"] % len(meta.shape)
        axes = {} if everything else {axis: (bound["start"], bound["end"], bound["step"])}
        absorbed: tuple[Node, ...] = ()
        if source in found and len(source.users) == 1 and axis not in found[source].axes:
            inner = found[source]
            axes, absorbed = {**inner.axes, **axes}, (*inner.absorbed, source)
            source = inner.source
        found[node] = _Slice(source, axes, absorbed)
    return found


def _unpacked(nodes: Sequence[Node]) -> dict[Node, list[Node]]:
    """Calls with several results, all of them taken in order right after: `x, y = x.chunk(2, dim=1)`."""
    found: dict[Node, list[Node]] = {}
    for position, node in enumerate(nodes):
        value = node.meta.get("value")
        if node.op != "call_function" or not isinstance(value, tuple) or len(node.users) != len(value):
            continue
        pieces = list(nodes[position + 1 : position + 1 + len(value)])
        if [piece.args for piece in pieces if piece.target is operator.getitem] == [
            (node, index) for index in range(len(value))
        ]:
            found[node] = pieces
    return found


def _ancestors(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _parameter_names(names: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for name in names:
        plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
        plain = plain if is_plain(plain) and plain not in _RESERVED else f"input_{plain}"
        chosen.append(next(candidate for candidate in _numbered(plain) if candidate not in chosen))
    return chosen


def _size_name(node: Node) -> str:
    reads_batch = operator_name(node.target) == "sym_size" and node.args[1] == 0 and node.args[0].op == "placeholder"
    return "batch_size" if reads_batch else "size"


def _tensor_names() -> Iterator[str]:
    yield from ("x", "y", "z")
    yield from (f"x{number}" for number in itertools.count(1))


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def _comment(section: str, last: Node) -> str:
    """The block's name and what it gives, without the batch; nothing where a name is not plain."""
    if not all(is_plain(part) or part.isdecimal() for part in section.split(".")):
        return ""
    shape = last.meta["value"].shape[1:] if isinstance(last.meta.get("value"), TensorMeta) else ()
    return f"# {section}" + (f" -> {' x '.join(map(str, shape))}" if shape else "")
