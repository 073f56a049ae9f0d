"""The signature of a program: which tensors its graph reads, its inputs and their shapes, and the names of its outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.errors import EngineError
from core.intake.pt2.archive import SCALAR_TYPES
from core.intake.pt2.fields import take, union
from core.intake.refusals import invalid, unsupported

MAX_INPUT_ELEMENTS = 2**26
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STORED = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}
_MAX_TREE = 50


@dataclass(frozen=True)
class Signature:
    """stored: by the name of a value, the qualified name of the tensor that it is. parameters: qualified names.

    inputs: shapes without the batch, by name. fixed: the number of images that the file was exported for, None for any.
    open_axes: axes after the batch that the file leaves open, by input; they take the sizes of `inputs`.
    outputs: (value, name) of each; names are "" where what the model returns has no keys.
    """

    stored: Mapping[str, str]
    parameters: frozenset[str]
    inputs: Mapping[str, tuple[int, ...]]
    float_type: torch.dtype
    fixed: int | None
    open_axes: Mapping[str, tuple[int, ...]]
    outputs: tuple[tuple[str, str], ...]


def read_signature(module: Mapping[str, Any], given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> Signature:
    """Raises EngineError: invalid_model, unsupported_format, shape_mismatch saying what to give."""
    what = "The signature"
    signature = take(module, "signature", dict, what)
    values = take(take(module, "graph", dict, what), "tensor_values", dict, what)
    stored: dict[str, str] = {}
    parameters: set[str] = set()
    names: list[str] = []
    for spec in take(signature, "input_specs", list, what):
        kind, body = union(spec, what)
        if kind in _STORED:
            name = take(take(body, "arg", dict, what), "name", str, what)
            stored[name] = take(body, _STORED[kind], str, what)
            if kind == "parameter":
                parameters.add(stored[name])
        elif kind == "user_input":
            argument, value = union(take(body, "arg", dict, what), what)
            if argument != "as_tensor":
                raise unsupported(f"An input of the .pt2 file is no tensor ({argument.removeprefix('as_')[:40]}).")
            names.append(take(value, "name", str, what))
        elif kind != "constant_input":
            raise unsupported(f"The .pt2 file takes an input of kind {kind[:40]!r} (a custom object or a token).")
    if not names:
        raise invalid("The program in the .pt2 file has no inputs.")
    if len(set(names)) < len(names):
        raise invalid("Two inputs of the .pt2 file have one name; the file is damaged.")
    sizes, types = {}, set()
    for name in names:
        meta = values.get(name)
        if not isinstance(meta, dict):
            raise invalid(f"Input {name[:80]!r} of the .pt2 file has no shape; the file is damaged.")
        sizes[name] = [_size(one, name) for one in take(meta, "sizes", list, f"Input {name[:80]!r}")]
        types.add(SCALAR_TYPES.get(take(meta, "dtype", int, f"Input {name[:80]!r}")))
    if len(types) > 1 or not types.issubset(_FLOATS):
        listed = ", ".join(sorted(str(one).removeprefix("torch.") for one in types))
        raise invalid(
            f"The inputs of the .pt2 file are {listed}; inputs are floating-point tensors [batch, …] of one type."
        )
    fixed = _fixed_batch(sizes)
    return Signature(
        stored,
        frozenset(parameters),
        {
            name: _bound(name, axes, shape)
            for (name, axes), shape in zip(sizes.items(), _given(given, names), strict=True)
        },
        types.pop(),
        fixed,
        {
            name: tuple(axis for axis, size in enumerate(axes) if axis and isinstance(size, _Open))
            for name, axes in sizes.items()
        },
        _outputs(module, signature),
    )


@dataclass(frozen=True)
class _Open:
    """A size that the program leaves open; `hint` is the one that it was exported with."""

    hint: int | None


def _size(value: object, name: str) -> int | _Open:
    what = f"Input {name[:80]!r}"
    kind, size = union(value, what)
    if kind == "as_int":
        return take({"size": size}, "size", int, what)
    hint = size.get("hint") if isinstance(size, dict) else None
    hint = hint.get("as_int") if isinstance(hint, dict) else None
    return _Open(hint if type(hint) is int and 0 < hint < MAX_INPUT_ELEMENTS else None)


def _fixed_batch(sizes: Mapping[str, list[int | _Open]]) -> int | None:
    if any(len(axes) < 2 for axes in sizes.values()):
        raise invalid("The inputs of the .pt2 file are images [batch, …]; one of them has fewer axes.")
    batches = {name: axes[0] for name, axes in sizes.items()}
    numbers = {size for size in batches.values() if isinstance(size, int)}
    if not numbers:
        return None
    if len(numbers) > 1 or any(isinstance(size, _Open) for size in batches.values()) or min(numbers) < 1:
        raise invalid("The inputs of the .pt2 file have different batch sizes; export them with one.")
    return numbers.pop()


def _given(
    given: Sequence[int] | Mapping[str, Sequence[int]] | None, names: Sequence[str]
) -> list[Sequence[int] | None]:
    if given is None:
        return [None] * len(names)
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise _mismatch(f"input_shape names {unknown[0][:80]!r}; the inputs are {', '.join(map(repr, names))}.")
        return [given.get(name) for name in names]
    if len(names) > 1:
        example = "{" + ", ".join(f'"{name}": […]' for name in names) + "}"
        raise _mismatch(f"The network has {len(names)} inputs; give input_shape by name: {example}.")
    return [given]


def _bound(name: str, axes: list[int | _Open], given: Sequence[int] | None) -> tuple[int, ...]:
    """The shape without the batch: what is given, else what the file was exported with."""
    own = [size if isinstance(size, int) else size.hint for size in axes[1:]]
    said = [size if isinstance(size, int) else "?" for size in axes[1:]]
    if given is None:
        if None in own:
            raise _mismatch(f"Input {name[:80]!r} has the open shape {said}; give input_shape.")
        shape = tuple(own)
    else:
        shape = tuple(given)
        whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
        fits = whole and len(shape) == len(said)
        if not fits or any(isinstance(want, int) and want != size for want, size in zip(said, shape, strict=True)):
            raise _mismatch(
                f"input_shape is {list(shape)[:8]}; input {name[:80]!r} of the .pt2 file has {said} after the batch."
            )
    if min(shape) < 1 or math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise _mismatch(
            f"Input {name[:80]!r} has the shape {list(shape)[:8]}; at most {MAX_INPUT_ELEMENTS} elements are analysed."
        )
    return shape


def _mismatch(message: str) -> EngineError:
    return EngineError("shape_mismatch", message, param="/input_shape")


def _outputs(module: Mapping[str, Any], signature: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    what = "The signature"
    specs = [union(one, what) for one in take(signature, "output_specs", list, what)]
    written = [kind for kind, _ in specs if kind != "user_output"]
    if written:
        raise invalid(
            f"The program in the .pt2 file changes its own state ({written[0][:40]}): it was exported in training mode, or "
            "counts something. Call model.eval() before torch.export.export."
        )
    values = [union(take(body, "arg", dict, what), what) for _, body in specs]
    names = _leaf_names(module)
    names = names if len(names) == len(values) else [""] * len(values)
    other = [
        f"{name or f'number {index}'!r} ({kind.removeprefix('as_')[:40]})"
        for index, ((kind, _), name) in enumerate(zip(values, names, strict=True))
        if kind != "as_tensor"
    ]
    if other:
        raise unsupported(
            f"What the network in the .pt2 file returns is not tensors alone; others are {', '.join(other[:10])}. Return "
            "tensors only, and export it again."
        )
    if not values:
        raise invalid("The network in the .pt2 file returns no tensor.")
    return tuple((take(value, "name", str, what), name) for (_, value), name in zip(values, names, strict=True))


def _leaf_names(module: Mapping[str, Any]) -> list[str]:
    """Per leaf of what the model returns: its keys in dictionaries, joined; "" where it has none."""
    calls = module.get("module_call_graph")
    top = (
        next((one for one in calls if isinstance(one, dict) and one.get("fqn") == ""), {})
        if isinstance(calls, list)
        else {}
    )
    text = (top.get("signature") or {}).get("out_spec") if isinstance(top.get("signature"), dict) else None
    try:
        tree = json.loads(text)[1]
        return list(_leaves(tree, (), 0))
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        # Names are a courtesy: a tree of another kind leaves the outputs numbered.
        return []


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...], depth: int) -> list[str]:
    if depth > _MAX_TREE:
        raise ValueError("too deep")
    if tree["type"] is None:
        return ["_".join(path)]
    children = tree["children_spec"]
    context = json.loads(tree["context"]) if isinstance(tree["context"], str) else None
    if tree["type"] in ("builtins.dict", "collections.OrderedDict") and isinstance(context, list):
        steps = [(str(key),) for key in context]
    else:
        # Places in a list only tell outputs apart below a key.
        steps = [(str(index),) if path else () for index in range(len(children))]
    return [
        name for step, child in zip(steps, children, strict=True) for name in _leaves(child, (*path, *step), depth + 1)
    ]
