"""From a file to named float32 weights: containers read, wrappers and prefixes removed, values checked."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from core.intake.checkpoint import Checkpoint, Container
from core.intake.formats import sniff
from core.intake.refusals import SAVE_WEIGHTS, invalid, unsupported
from core.intake.safetensors_file import read_safetensors
from core.intake.stored import StoredTensor, read_tensors
from core.intake.stream_file import read_stream
from core.intake.zip_file import read_zip

# In order of preference where a checkpoint has several.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
COMPILED = "_orig_mod"
MAX_WRAPPERS = 4
MAX_NAME = 256

_READERS: Mapping[Container, Callable[[memoryview], Checkpoint]] = {
    "safetensors": read_safetensors,
    "zip": read_zip,
    "stream": read_stream,
}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class StateDict:
    """Weights by name: contiguous, independent of the file, floating-point ones finite and float32.

    unwrapped: wrappers and prefixes that were removed, outermost first, e.g. ("state_dict", "module.").
    metadata: that of a safetensors header.
    """

    tensors: dict[str, torch.Tensor]
    container: Container
    unwrapped: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_state_dict(path: Path) -> StateDict:
    """Read a `.safetensors`, or a `.pt`/`.pth`/`.th` in the zip or the older stream form, by content, running nothing.

    Raises EngineError: unsafe_model, invalid_model, unsupported_format, too_large.
    """
    checkpoint = read_checkpoint(path)
    stored, wrappers = _unwrap(checkpoint.root)
    stored, prefixes = _without_prefixes(stored)
    _require_plain_names(stored)
    tensors = read_tensors(stored, checkpoint.storages)
    return StateDict(as_float32(tensors), checkpoint.container, (*wrappers, *prefixes), checkpoint.metadata)


def _require_plain_names(stored: Mapping[str, StoredTensor]) -> None:
    """Names end up in messages, terminals and generated code, so they are text that a person can see."""
    for name in stored:
        if not name.isprintable() or len(name) > MAX_NAME:
            shown = name[:80].encode("ascii", "backslashreplace").decode()
            raise invalid(f"A tensor is named {shown!r}; names are printable and have at most {MAX_NAME} characters.")


def read_checkpoint(path: Path) -> Checkpoint:
    """The interpreted object and its storages, whose memory is the mapped file."""
    data = read_file(path)
    container = sniff(data)
    if container not in _READERS:
        raise unsupported("The file is an ONNX model, which is a whole network and not a state_dict.")
    return _READERS[container](data)


def read_file(path: Path) -> memoryview:
    """The file's bytes, mapped."""
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _unwrap(root: Any) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The state_dict inside a checkpoint, and the names under which it lay."""
    wrappers: tuple[str, ...] = ()
    while True:
        if not isinstance(root, dict):
            inside = f" in {'.'.join(wrappers)!r}" if wrappers else ""
            raise invalid(f"The checkpoint holds {_kind(root)}{inside}, not a state_dict; {SAVE_WEIGHTS}.")
        name = _wrapper(root)
        if name is None:
            return {key: value for key, value in root.items() if _is_weight(key, value)}, wrappers
        if len(wrappers) == MAX_WRAPPERS:
            raise invalid(f"The checkpoint is wrapped more than {MAX_WRAPPERS} times; {SAVE_WEIGHTS}.")
        wrappers = (*wrappers, str(name))
        root = root[name]


def _wrapper(root: Mapping[object, Any]) -> object | None:
    """The key under which the state_dict lies, or None where `root` is it."""
    known = {name: root[name] for name in WRAPPERS if isinstance(root.get(name), dict)}
    for name, value in known.items():
        if _has_tensors(value):
            return name
    if _has_tensors(root):
        return None
    for name, value in known.items():
        if any(isinstance(inner, dict) for inner in value.values()):
            return name
    candidates = [key for key, value in root.items() if isinstance(value, dict) and _has_tensors(value)]
    if len(candidates) == 1:
        return candidates[0]
    keys = ", ".join(str(key)[:40] for key in list(root)[:10]) or "none"
    several = ", ".join(str(key)[:40] for key in candidates[:10])
    raise invalid(
        f"The checkpoint holds {f'several sets of tensors ({several})' if several else 'no tensors'} where one "
        f"state_dict was looked for; its keys: {keys}. Known wrappers: {', '.join(WRAPPERS)}; or {SAVE_WEIGHTS}."
    )


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, StoredTensor)


def _has_tensors(mapping: Mapping[object, object]) -> bool:
    return any(_is_weight(key, value) for key, value in mapping.items())


def _kind(value: object) -> str:
    if isinstance(value, StoredTensor):
        return "a single tensor"
    return {list: "a list", tuple: "a tuple", str: "a string", type(None): "nothing"}.get(type(value), "a single value")


def _without_prefixes(stored: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Remove what wrapping modules add: `module.` (data parallel) and `_orig_mod.` (compiled), also inside a name."""
    removed: tuple[str, ...] = ()
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in stored)), None):
        removed = (*removed, prefix)
        stored = _renamed(stored, lambda name, prefix=prefix: name.removeprefix(prefix))
    if any(COMPILED in name.split(".") for name in stored):
        removed = (*removed, f"{COMPILED}.")
        stored = _renamed(stored, lambda name: ".".join(part for part in name.split(".") if part != COMPILED))
    return stored, removed


def _renamed(stored: dict[str, StoredTensor], rename: Callable[[str], str]) -> dict[str, StoredTensor]:
    renamed = {rename(name): tensor for name, tensor in stored.items()}
    if len(renamed) != len(stored):
        raise invalid("Two tensors of the checkpoint have the same name once `module.` and `_orig_mod.` are removed.")
    return renamed


def as_float32(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floats widened or narrowed to float32. Raises EngineError("invalid_model") for other types and for what is not finite."""
    converted: dict[int, torch.Tensor] = {}
    broken: list[str] = []
    for name, tensor in tensors.items():
        if tensor.dtype not in (*_FLOATS, *_INTEGERS):
            raise invalid(
                f"Tensor {name[:200]!r} has element type {str(tensor.dtype).removeprefix('torch.')}; "
                f"weights must be float32, float16, bfloat16 or float64."
            )
        if id(tensor) not in converted:
            converted[id(tensor)] = tensor.float() if tensor.is_floating_point() else tensor
        widened = converted[id(tensor)]
        if widened.is_floating_point() and (count := widened.numel() - int(torch.isfinite(widened).sum())):
            broken.append(f"{name[:200]} ({count} of {widened.numel()} values)")
    if broken:
        rest = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise invalid(
            f"{len(broken)} tensor(s) hold values that are not finite in float32: {', '.join(broken[:10])}{rest}. "
            f"The training probably diverged; upload an earlier checkpoint.",
            details={"tensors": {"count": len(broken), "first": broken[:10]}},
        )
    return {name: converted[id(tensor)] for name, tensor in tensors.items()}
