"""The inputs of a file: which they are, and their shapes at batch 1."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from core.errors import EngineError
from core.intake.onnx.proto import type_name
from core.intake.refusals import invalid
from core.network import TensorSpec

MAX_INPUT_ELEMENTS = 2**26
MAX_NAME = 256


@dataclass(frozen=True)
class Binding:
    """inputs: in the file's order. dynamic: whether the file takes any number of images. batch_name: what it calls that.

    open_axes: by input, the axes after the batch that the file leaves open, with their names.
    """

    inputs: tuple[TensorSpec, ...]
    dynamic: bool
    batch_name: str
    open_axes: Mapping[str, Mapping[int, str]]


def bind_inputs(model: onnx.ModelProto, given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> Binding:
    """Raises EngineError: shape_mismatch saying what to give, invalid_model for inputs that are no float32 images."""
    constants = {one.name for one in model.graph.initializer}
    declared = [one for one in model.graph.input if one.name not in constants]
    if not declared:
        raise invalid("The ONNX graph has no inputs.")
    for one in (*declared, *model.graph.output):
        if not one.name.isprintable() or len(one.name) > MAX_NAME:
            shown = one.name[:80].encode("ascii", "backslashreplace").decode()
            raise invalid(
                f"An input or output is named {shown!r}; names are printable, of at most {MAX_NAME} characters."
            )
    axes = {one.name: _axes(one) for one in declared}
    shapes = _given_shapes(given, list(axes))
    _require_sizes({name: sizes for name, sizes in axes.items() if name not in shapes}, several=len(axes) > 1)
    specs = tuple(TensorSpec(name, _bound(name, sizes, shapes.get(name))) for name, sizes in axes.items())
    batches = [sizes[0] for sizes in axes.values()]
    dynamic = all(not isinstance(size, int) for size in batches)
    names = [size for size in batches if isinstance(size, str) and size]
    free = {
        name: {axis: size for axis, size in enumerate(sizes) if axis and isinstance(size, str)}
        for name, sizes in axes.items()
    }
    return Binding(specs, dynamic, names[0] if names else "batch", {name: one for name, one in free.items() if one})


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes as numbers, open ones as their names ("" without one)."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type != TensorProto.FLOAT:
        found = type_name(kind.elem_type) if value.type.HasField("tensor_type") else "no tensor"
        raise invalid(f"Input {value.name!r} of the ONNX graph is {found}; inputs are float32 tensors [batch, …].")
    if not kind.HasField("shape") or len(kind.shape.dim) < 2:
        raise invalid(f"Input {value.name!r} of the ONNX graph has no shape [batch, …]; export it with one.")
    axes: list[int | str] = []
    for dim in kind.shape.dim:
        axes.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param)
    if isinstance(axes[0], int) and axes[0] != 1:
        raise EngineError(
            "shape_mismatch",
            f"Input {value.name!r} of the ONNX graph has a fixed batch of {axes[0]}; export it with batch 1 or a dynamic one.",
        )
    return axes


def _given_shapes(
    given: Sequence[int] | Mapping[str, Sequence[int]] | None, names: list[str]
) -> Mapping[str, Sequence[int]]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise _mismatch(f"input_shape names {unknown[0][:80]!r}; the inputs are {', '.join(map(repr, names))}.")
        return given
    if len(names) > 1:
        example = "{" + ", ".join(f'"{name}": […]' for name in names) + "}"
        raise _mismatch(f"The network has {len(names)} inputs; give input_shape by name: {example}.")
    return {names[0]: given}


def _require_sizes(axes: Mapping[str, list[int | str]], *, several: bool) -> None:
    """Raises EngineError("shape_mismatch") naming every input that is open after the batch, with what to give."""
    left_open = {name: sizes[1:] for name, sizes in axes.items() if any(isinstance(size, str) for size in sizes[1:])}
    if not left_open:
        return
    example = {name: [size if isinstance(size, int) else 224 for size in sizes] for name, sizes in left_open.items()}
    listed = " and ".join(f"input {name!r} has the open shape {_said(sizes)}" for name, sizes in left_open.items())
    shown = json.dumps(example if several else next(iter(example.values())))
    raise _mismatch(
        f"After the batch, {listed} in the ONNX graph; give input_shape with the sizes that the network is used with, "
        f"e.g. {shown}.",
        {"example": example},
    )


def _said(sizes: Sequence[int | str]) -> list[int | str]:
    return [size if isinstance(size, int) else size or "?" for size in sizes]


def _bound(name: str, axes: list[int | str], given: Sequence[int] | None) -> tuple[int, ...]:
    """The shape without the batch. Raises EngineError("shape_mismatch") naming what differs."""
    own = axes[1:]
    if given is None:
        shape = tuple(own)
    else:
        shape = tuple(given)
        whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
        fits = whole and len(shape) == len(own)
        if not fits or any(isinstance(want, int) and want != size for want, size in zip(own, shape, strict=True)):
            raise _mismatch(
                f"input_shape is {list(shape)[:8]}; input {name!r} of the ONNX graph has {_said(own)} after the batch."
            )
    if math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise _mismatch(f"Input {name!r} has {math.prod(shape)} elements; at most {MAX_INPUT_ELEMENTS} are analysed.")
    return shape


def _mismatch(message: str, details: Mapping[str, object] | None = None) -> EngineError:
    return EngineError("shape_mismatch", message, param="/input_shape", details=details)
