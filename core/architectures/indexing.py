"""Writes the index of a library's networks: their titles, input shapes, arguments and layouts.

    python -m core.architectures.indexing [--missing] [torchvision] [timm]

Every network is built without values, twice: as it is, and with another number of classes and of input channels, which
shows the sizes that follow from them; then it is run once. What cannot be built, or does not give tensors, is printed
and left out. Run it after changing the version of a library; with `--missing`, only for networks that the index lacks.
"""

from __future__ import annotations

import argparse
import inspect
import re
import warnings
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.architectures.families import timm as timm_family
from core.architectures.families import torchvision as torchvision_family
from core.architectures.family import State, without_values
from core.architectures.layout import Layout, OpenSize
from core.architectures.library import Entry, read_index, write_index

# Neither is a size that a network has for another reason; three input channels become six.
_CLASSES = 1009
_CHANNELS = 6
_NOT_SINGLE_TENSOR = ("detection", "optical_flow", "quantization")
# Video networks see clips; the others' default is 224, inception_v3's 299.
_TORCHVISION_INPUTS = {
    "inception_v3": (3, 299, 299),
    "r3d_18": (3, 16, 112, 112),
    "mc3_18": (3, 16, 112, 112),
    "r2plus1d_18": (3, 16, 112, 112),
    "s3d": (3, 16, 224, 224),
    "mvit_v1_b": (3, 16, 224, 224),
    "mvit_v2_s": (3, 16, 224, 224),
    "swin3d_t": (3, 16, 224, 224),
    "swin3d_s": (3, 16, 224, 224),
    "swin3d_b": (3, 16, 224, 224),
}
_AUXILIARY_ARGUMENTS = ("aux_logits", "aux_loss")


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", default=["torchvision", "timm"])
    parser.add_argument("--missing", action="store_true")
    arguments = parser.parse_args()
    for library in arguments.libraries:
        known = dict(read_index(library)) if arguments.missing else {}
        new, version = {"torchvision": _torchvision, "timm": _timm}[library](known)
        entries = {**known, **new}
        write_index(library, version, entries)
        print(f"{library} {version}: {len(entries)} networks")


def _torchvision(known: Container[str]) -> tuple[dict[str, Entry], str]:
    import torchvision

    entries = {}
    for name in torchvision.models.list_models():
        builder = torchvision.models.get_model_builder(name)
        if name in known or any(part in builder.__module__ for part in _NOT_SINGLE_TENSOR):
            continue
        with _reported(name) as result:
            result["entry"] = _torchvision_entry(name, builder)
        if "entry" in result:
            entries[name] = result["entry"]
    return entries, torchvision.__version__.partition("+")[0]


def _torchvision_entry(name: str, builder: Any) -> Entry:
    build = torchvision_family.build
    auxiliary = [
        argument for argument in _AUXILIARY_ARGUMENTS if argument in _accepted(builder, _empty(build, name, {}))
    ]
    variants = [{auxiliary[0]: False}, {auxiliary[0]: True}] if auxiliary else [{}]
    layouts, module = [], None
    for variant in variants:
        module = _empty(build, name, variant)
        changed = _empty(build, name, {**variant, "num_classes": _CLASSES})
        layouts.append(_layout(module.state_dict(), changed.state_dict()))
    shape = _TORCHVISION_INPUTS.get(name, (3, 224, 224))
    _require_tensors(module, shape)
    arguments = {**layouts[0].arguments(module.state_dict()), **dict.fromkeys(auxiliary, False)}
    accepted = _accepted(builder, module)
    takes = tuple(key for key in torchvision_family.PROPERTIES if key in accepted and key not in arguments)
    title = f"{_first_words(builder) or name} (torchvision)"
    return Entry(title, shape, arguments, takes, tuple(layouts))


def _timm(known: Container[str]) -> tuple[dict[str, Entry], str]:
    timm = timm_family.library()
    entries = {}
    for index, name in enumerate(timm.list_models()):
        if index % 100 == 0:
            print(f"timm: {index} …", flush=True)
        if name in known:
            continue
        with _reported(name) as result:
            result["entry"] = _timm_entry(name)
        if "entry" in result:
            entries[name] = result["entry"]
    return entries, timm.__version__


def _timm_entry(name: str) -> Entry:
    build = timm_family.build
    module = _empty(build, name, {})
    cfg = module.default_cfg
    shape = tuple(cfg["input_size"])
    takes = [argument for argument in ("global_pool", "output_stride", "drop_rate") if argument in _accepted(module)]
    changed, changes = _changed(name, shape, sized="img_size" in _accepted(module))
    if "img_size" in changes:
        takes.insert(0, "img_size")
    layout = _layout(module.state_dict(), changed.state_dict())
    layouts = [layout]
    arguments = {"num_classes": cfg["num_classes"]}
    if not cfg["num_classes"]:
        open = {argument: sizes for argument, sizes in layout.open.items() if argument != "num_classes"}
        layouts.append(Layout.of(module.state_dict(), open))
    if "in_chans" in changes:
        arguments["in_chans"] = shape[0]
    _require_tensors(module, shape)
    title = f"{_first_words(timm_family.library().model_entrypoint(name)) or type(module).__name__} (timm)"
    return Entry(title, shape, arguments, tuple(takes), tuple(layouts))


def _changed(name: str, shape: tuple[int, ...], *, sized: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network with as many of the arguments that change sizes as it takes, and those arguments."""
    size = {"img_size": list(shape[1:])} if sized else {}
    channels = {"in_chans": _CHANNELS}
    error: Exception | None = None
    for extra in ({**channels, **size}, channels, size, {}):
        arguments = {"num_classes": _CLASSES, **extra}
        try:
            return _empty(timm_family.build, name, arguments), arguments
        except Exception as failure:
            error = failure
    raise error


def _layout(state: State, changed: State) -> Layout:
    """The layout of `changed`, with the sizes open that follow from the classes and the input channels."""
    classes, channels = [], []
    for key, tensor in changed.items():
        for axis, size in enumerate(tensor.shape):
            before = state[key].shape[axis] if key in state else None
            if size == before:
                continue
            if size % _CLASSES == 0:
                classes.append(OpenSize(key, axis, size // _CLASSES))
            elif before is not None and before * _CHANNELS == size * 3:
                channels.append(OpenSize(key, axis, size // _CHANNELS))
            elif before is not None:
                raise ValueError(f"axis {axis} of {key} goes from {before} to {size}")
    found = {"num_classes": tuple(classes), "in_chans": tuple(channels)}
    return Layout.of(changed, {argument: sizes for argument, sizes in found.items() if sizes})


def _empty(build: Any, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        with without_values():
            return build(name, dict(arguments)).eval()
    except Exception:  # a constructor that runs a part of the network needs values
        return build(name, dict(arguments)).eval()


def _accepted(*callables: Any) -> set[str]:
    """Names of the parameters of functions, and of the constructors of modules."""
    found: set[str] = set()
    for one in callables:
        found |= set(inspect.signature(type(one).__init__ if isinstance(one, nn.Module) else one).parameters)
    return found


def _require_tensors(module: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        output = module.to("meta")(torch.zeros((2, *shape), device="meta"))
    leaves = list(torch.utils._pytree.tree_leaves(output))
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(f"its output is a {type(output).__name__}")


def _first_words(builder: Any) -> str:
    """The first line of a docstring, without markup, if it says what the network is."""
    lines = (inspect.getdoc(builder) or "").strip().splitlines()
    first = re.sub(r"\s+", " ", re.sub(r"<[^>]*>`?_*|[`*]", "", lines[0])).strip(" .:-") if lines else ""
    first = re.sub(r"^(Constructs|Construct|Instantiates|Builds?) (an? |the )?", "", first)
    first = re.sub(r"(,? as described in|,? as in|,? from| -)\b.*$| from$| as in$", "", first)
    first = re.sub(r"( model)?( architecture| network)?(?= with | from |$)", "", first).strip(" .:-,")
    return first if 3 <= len(first) <= 100 else ""


class _reported:
    """Prints what keeps a network out of the index, and goes on with the next."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> dict[str, Any]:
        return {}

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Exception):
            print(f"  left out: {self.name}: {type(error).__name__}: {str(error).strip()[:200]}", flush=True)
        return isinstance(error, Exception)


if __name__ == "__main__":
    main()
