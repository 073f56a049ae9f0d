"""Builds the network's graph out of ATen calls, computing at once what is known.

A handler writes `builder.call(aten.add.Tensor, x, y)`. If everything is known, the call is evaluated now, for batch 1
and for batch `MANY`: constants fold and size arithmetic disappears. Otherwise it becomes a node, and its shapes come from
running it on meta tensors. One table of handlers thus serves both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from core.errors import first_line
from core.intake.onnx.names import NameTree, safe_identifier, safe_name
from core.intake.onnx.values import MANY, BatchInt, Computed, Known, NotPerImage, Unsupported, Value
from core.network import TensorMeta

aten = torch.ops.aten
MAX_KNOWN_ELEMENTS = 2**26
MAX_ELEMENTS = 2**28


class Builder:
    """A graph in the making, its tensors by name, and which of them are trained.

    dynamic: whether the file takes any number of images, so that its numbers hold for all of them.
    squeezes_batch: whether a Squeeze without axes takes the batch away where there is one image, as the operator says, or
    leaves it, as whoever put it inside a network meant. kept_batch: that one did.
    """

    def __init__(self, *, dynamic: bool = True, squeezes_batch: bool = False) -> None:
        self.dynamic = dynamic
        self.squeezes_batch = squeezes_batch
        self.kept_batch = False
        self.graph = Graph()
        self.tensors: dict[str, Tensor] = {}
        self.parameter_names: set[str] = set()
        self.path = ""
        self._names = NameTree()
        # Names by identity of the value; `_alive` keeps identities from being used again.
        self._given: dict[int, str] = {}
        self._alive: list[Tensor] = []
        self._reads: dict[str, Node] = {}
        self._inputs: list[Computed] = []
        self._batch: dict[int, BatchInt] = {}

    def input(self, name: str, shape: Sequence[int]) -> Computed:
        """A float32 input of `shape` (without the batch)."""
        identifier = safe_identifier(name)
        while any(one.node.target == identifier for one in self._inputs):
            identifier += "_"
        one, many = (torch.empty((batch, *shape), device="meta") for batch in (1, MANY))
        node = self.graph.placeholder(identifier)
        node.meta = {"path": "", "value": TensorMeta(tuple(one.shape), one.dtype)}
        value = Computed(node, one, many)
        self._inputs.append(value)
        return value

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of an ATen call: a value, or a tuple of them. Raises NotPerImage, Unsupported."""
        if not _any(lambda item: isinstance(item, (Computed, BatchInt)), (args, kwargs)):
            return self._fold(target, args, kwargs)
        one = _evaluate(target, _map(_meta_one, args), _map(_meta_one, kwargs))
        try:
            many = _evaluate(target, _map(_meta_many, args), _map(_meta_many, kwargs))
        except Unsupported as error:
            raise NotPerImage(f"with more than one image, {error}") from error
        _require_small(one, MAX_ELEMENTS)
        node = self.graph.call_function(target, _map(self._argument, args), _map(self._argument, kwargs))
        node.meta = {"path": self.path, "value": _described(one)}
        if isinstance(one, Tensor):
            return Computed(node, one, many)
        return tuple(self._item(node, index, *pair) for index, pair in enumerate(zip(one, many, strict=True)))

    def _item(self, node: Node, index: int, one: Tensor, many: Tensor) -> Computed:
        item = self.graph.call_function(operator.getitem, (node, index))
        item.meta = {"path": self.path, "value": _described(one)}
        return Computed(item, one, many)

    def _fold(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        meta = _evaluate(target, _map(_meta_one, args), _map(_meta_one, kwargs))
        _require_small(meta, MAX_KNOWN_ELEMENTS)
        one = _evaluate(target, _map(_one, args), _map(_one, kwargs))
        many = one
        if _any(lambda item: isinstance(item, Known) and item.one is not item.many, (args, kwargs)):
            try:
                many = _evaluate(target, _map(_many, args), _map(_many, kwargs))
            except Unsupported as error:
                raise NotPerImage(f"with more than one image, {error}") from error
        if isinstance(one, Tensor):
            return Known(one, many)
        return tuple(Known(first, second) for first, second in zip(one, many, strict=True))

    def batch(self, per_image: int = 1) -> BatchInt:
        """`per_image` times the batch size, as a number that calls can take."""
        if per_image not in self._batch:
            if per_image == 1:
                node = self.graph.call_function(aten.sym_size.int, (self._inputs[0].node, 0))
            else:
                node = self.graph.call_function(operator.mul, (self.batch().node, per_image))
            node.meta = {"path": "", "value": per_image}
            self._batch[per_image] = BatchInt(node, per_image)
        return self._batch[per_image]

    def size(self, one: int, many: int) -> int | BatchInt:
        """A size that is `one` at batch 1 and `many` at batch MANY. Raises NotPerImage."""
        if one == many:
            return one
        if many != one * MANY:
            raise NotPerImage("it reads a size that is not proportional to the batch size")
        return self.batch(one)

    def layer(self, fallback: str, tensors: dict[str, Value | None]) -> dict[str, Value | None]:
        """Name the known tensors of one layer `<path>.<leaf>`: the path that their own names share, else `fallback`.

        A leaf that begins with `running_` is a buffer, every other one a parameter. Sets the path of the calls to come;
        a layer without tensors (dropout) is only given one.
        """
        known = {leaf: value for leaf, value in tensors.items() if isinstance(value, Known) and value.fixed}
        given = {
            self._given[id(value.one)].rpartition(".")[0] for value in known.values() if id(value.one) in self._given
        }
        fresh = {leaf: value for leaf, value in known.items() if id(value.one) not in self._given}
        if fresh or not tensors:
            path = self._names.take(_shared_path(fresh) or fallback)
            for leaf, value in fresh.items():
                self._store(value, f"{path}.{leaf}", trainable=value.is_float and not leaf.startswith("running_"))
            self.path = path
        elif given:
            self.path = given.pop()
        return tensors

    def lift(self, value: Value, wanted: str = "") -> Computed:
        """A known value as one of the network: a tensor that the graph reads, expanded over the batch if it must be."""
        if isinstance(value, Computed):
            return value
        if not value.fixed:
            axis = value.batch_axis
            if axis is None or not torch.equal(value.one.expand_as(value.many), value.many):
                raise NotPerImage("it reads a value that depends on the batch size")
            sizes = [self.batch() if one == axis else -1 for one in range(value.rank)]
            return self.call(aten.expand.default, self.lift(Known.of(value.one), wanted), sizes)
        name = self._given.get(id(value.one))
        if name is None:
            name = self._store(value, self._names.take(value.name or wanted or "constant"), trainable=value.trainable)
        if name not in self._reads:
            node = self.graph.get_attr(name)
            node.meta = {"path": "", "value": TensorMeta(value.shape, value.dtype)}
            self._reads[name] = node
        meta = value.one.to("meta")
        return Computed(self._reads[name], meta, meta)

    def _store(self, value: Known, name: str, *, trainable: bool) -> str:
        self.tensors[name] = value.one.contiguous()
        self._given[id(value.one)] = name
        self._alive.append(value.one)
        if trainable:
            self.parameter_names.add(name)
        return name

    def _argument(self, item: Any) -> Any:
        if isinstance(item, BatchInt):
            return item.node
        return (
            self.lift(item, f"{safe_name(self.path)}.constant" if self.path else "").node
            if isinstance(item, Value)
            else item
        )


def _shared_path(tensors: dict[str, Known]) -> str:
    """The common path of names like `layer1.conv.weight`; where the names disagree, the weight's."""
    paths = {leaf: value.name.rpartition(".")[0] for leaf, value in tensors.items() if value.name.endswith(f".{leaf}")}
    if len(set(paths.values())) == 1:
        return next(iter(paths.values()))
    return paths.get("weight", "")


def _evaluate(target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    try:
        with torch.no_grad():
            return target(*args, **kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError) as error:
        raise Unsupported(f"PyTorch refuses its arguments: {first_line(error)}") from error


def _require_small(result: Any, limit: int) -> None:
    for item in result if isinstance(result, (tuple, list)) else (result,):
        if isinstance(item, Tensor) and item.numel() > limit:
            raise Unsupported(f"its result has {item.numel()} elements, more than {limit}")


def _described(result: Any) -> Any:
    if isinstance(result, Tensor):
        return TensorMeta(tuple(result.shape), result.dtype)
    return tuple(_described(item) for item in result)


def _map(function: Callable[[Any], Any], item: Any) -> Any:
    if isinstance(item, (list, tuple)):
        return type(item)(_map(function, one) for one in item)
    if isinstance(item, dict):
        return {key: _map(function, one) for key, one in item.items()}
    return function(item)


def _any(predicate: Callable[[Any], bool], item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return any(_any(predicate, one) for one in item)
    if isinstance(item, dict):
        return any(_any(predicate, one) for one in item.values())
    return predicate(item)


def _one(item: Any) -> Any:
    return item.one if isinstance(item, Value) else item


def _many(item: Any) -> Any:
    return item.many if isinstance(item, Value) else item


def _meta_one(item: Any) -> Any:
    if isinstance(item, Value):
        return item.one.to("meta")
    return item.per_image if isinstance(item, BatchInt) else item


def _meta_many(item: Any) -> Any:
    if isinstance(item, Value):
        return item.many.to("meta")
    return item.per_image * MANY if isinstance(item, BatchInt) else item
