"""How the rules' operators are said in older opsets.

The rules write opset 20. An operator that came, or changed, after the opset that is asked for is written by the function
here instead; every other one means the same from `FIRST_OPSET` to `LAST_OPSET`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from core.errors import EngineError

if TYPE_CHECKING:
    from core.deliver.onnx_graph.builder import GraphBuilder

# Before 13, Squeeze, Split and ReduceSum took no axes that are values, and Softmax flattened. 26 is the newest that the last
# three releases of ONNX Runtime (1.29 to 1.31) run; 20, 23 and 26 become the same graph in it.
FIRST_OPSET, DEFAULT_OPSET, LAST_OPSET = 13, 26, 26


class NotInOpset(Exception):
    """An operator that the opset has no words for."""


def require_opset(opset: int) -> None:
    """Raises EngineError("invalid_request") outside of what is written."""
    if not FIRST_OPSET <= opset <= LAST_OPSET:
        raise EngineError(
            "invalid_request",
            f"ONNX files are written in opset {FIRST_OPSET} to {LAST_OPSET}, and opset {opset} was asked for.",
            param="/onnx/opset",
        )


def _reduction(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    """Axes were an attribute before 18."""
    return builder.write(operator, inputs[0], axes=builder.known_integers(inputs[1]), **attributes)


def _split(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> Any:
    """Before 18 the number of parts was that of the outputs."""
    return builder.write(operator, *inputs, **{**attributes, "num_outputs": None})


def _resize(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    """Before 18 all sizes had to be given, those of batch and channels, too."""
    value, _, _, sizes = inputs
    front = builder.add("Shape", value, start=0, end=attributes["axes"][0])
    whole = builder.add("Concat", front, sizes, axis=0)
    return builder.write(operator, value, "", "", whole, **{**attributes, "axes": None})


def _shape(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    """Before 15 there was no part of a shape."""
    whole = builder.write(operator, *inputs)
    if not attributes:
        return whole
    limits = (builder.integers([attributes[name]]) for name in ("start", "end"))
    return builder.add("Slice", whole, *limits, builder.integers([0]))


def _gelu(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    """x · (1 + erf(x / √2)) / 2, or with tanh(√(2/π) · (x + 0.044715 x³)) in place of erf."""
    (value,) = inputs
    if attributes["approximate"] == "tanh":
        cube = builder.add("Mul", builder.add("Mul", value, value), value)
        inner = builder.add("Add", value, builder.add("Mul", cube, _number(builder, 0.044715)))
        bent = builder.add("Tanh", builder.add("Mul", inner, _number(builder, math.sqrt(2 / math.pi))))
    else:
        bent = builder.add("Erf", builder.add("Div", value, _number(builder, math.sqrt(2))))
    share = builder.add("Mul", builder.add("Add", bent, _number(builder, 1.0)), _number(builder, 0.5))
    return builder.add("Mul", value, share)


def _hard_swish(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    return builder.add("Mul", inputs[0], builder.add("HardSigmoid", inputs[0], alpha=1 / 6, beta=0.5))


def _mish(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    return builder.add("Mul", inputs[0], builder.add("Tanh", builder.add("Softplus", inputs[0])))


def _layer_norm(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    value, weight, *bias = inputs
    axes = builder.integers(range(attributes["axis"], 0))
    difference = builder.add("Sub", value, builder.add("ReduceMean", value, axes, keepdims=1))
    variance = builder.add("ReduceMean", builder.add("Mul", difference, difference), axes, keepdims=1)
    deviation = builder.add("Sqrt", builder.add("Add", variance, _number(builder, attributes["epsilon"])))
    scaled = builder.add("Mul", builder.add("Div", difference, deviation), weight)
    return builder.add("Add", scaled, bias[0]) if bias and bias[0] else scaled


def _pad(builder: GraphBuilder, operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
    if attributes.get("mode") == "wrap":
        raise NotInOpset("padding by what is on the other side needs opset 19")
    return builder.write(operator, *inputs, **attributes)


def _number(builder: GraphBuilder, value: float) -> str:
    return builder.scalar(value, torch.float32)


Older = Callable[["GraphBuilder", str, tuple[str, ...], dict[str, Any]], Any]

# operator: (the opset from which it is as the rules write it, how it is written before)
OLDER: Mapping[str, tuple[int, Older]] = {
    **{f"Reduce{kind}": (18, _reduction) for kind in ("Mean", "Max", "Min", "L1", "L2")},
    "Split": (18, _split),
    "Resize": (18, _resize),
    "Shape": (15, _shape),
    "Gelu": (20, _gelu),
    "HardSwish": (14, _hard_swish),
    "Mish": (18, _mish),
    "LayerNormalization": (17, _layer_norm),
    "Pad": (19, _pad),
}
