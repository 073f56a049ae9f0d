"""Constants, and tensors made of sizes."""

from __future__ import annotations

import torch

from core.intake.onnx.builder import MAX_KNOWN_ELEMENTS, Builder, aten
from core.intake.onnx.node import OnnxNode
from core.intake.onnx.values import Known, Unsupported, Value


def constant(builder: Builder, node: OnnxNode) -> Value:
    for name in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        if name in node.attributes:
            given = node.attributes[name]
            if isinstance(given, Known):
                return given
            return Known.of(torch.tensor(given, dtype=torch.float32 if "float" in name else torch.int64))
    raise Unsupported("a value that is neither a tensor nor numbers")


def constant_of_shape(builder: Builder, node: OnnxNode) -> Value:
    wanted = node.known(0)
    value = node.get("value")
    fill = value.one.reshape(-1)[:1] if isinstance(value, Known) else torch.zeros(1)
    tensors = []
    for sizes in (wanted.one, wanted.many):
        shape = [int(size) for size in sizes.reshape(-1)]
        count = 1
        for size in shape:
            count *= size
        if any(size < 0 for size in shape) or count > MAX_KNOWN_ELEMENTS:
            raise Unsupported(f"a constant of shape {shape}")
        tensors.append(fill.expand(shape) if shape else fill.reshape(()))
    return Known(*tensors)


def range_(builder: Builder, node: OnnxNode) -> Value:
    start, limit, step = (node.known(index) for index in range(3))
    numbers = []
    for pick in ("one", "many"):
        first, last, gap = (getattr(value, pick).reshape(-1)[0].item() for value in (start, limit, step))
        if gap == 0 or abs((last - first) / gap) > MAX_KNOWN_ELEMENTS:
            raise Unsupported(f"a range from {first} to {last} by {gap}")
        numbers.append(
            torch.arange(first, last, gap, dtype=start.dtype)
            if (last - first) / gap > 0
            else torch.zeros(0, dtype=start.dtype)
        )
    return Known.of(numbers[0]) if torch.equal(numbers[0], numbers[1]) else Known(*numbers)


def trilu(builder: Builder, node: OnnxNode) -> Value:
    x, shift = node.input(0), node.integers("k", 1)
    target = aten.triu.default if node.get("upper", 1) else aten.tril.default
    return builder.call(target, x, shift[0] if shift else 0)


HANDLERS = {"Constant": constant, "ConstantOfShape": constant_of_shape, "Range": range_, "Trilu": trilu}
