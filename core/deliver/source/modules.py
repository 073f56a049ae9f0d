"""The constructor of a generated class: submodules and tensors under exactly the names of the network.

Children named 0…n−1 become an `nn.ModuleList`, other numbered children an `nn.ModuleDict`, everything else a
`Namespace`, the one helper class that generated code carries. Names come from uploads: a name that is not a plain
identifier is only ever written as a string literal.
"""

from __future__ import annotations

import inspect
import json
import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from core.deliver.source.layout import Code, Group, call, list_of, prefixed, tuple_of
from core.module_form import Layer, layers
from core.network import Network

NAMESPACE = '''class Namespace(nn.Module):
    """Submodules, parameters and buffers under given names."""

    def __init__(self, **members: nn.Module | torch.Tensor) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
'''
# Constructor arguments that people write by position.
_POSITIONAL = {
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
    "num_features",
    "num_groups",
    "num_channels",
    "num_parameters",
    "num_embeddings",
    "embedding_dim",
    "normalized_shape",
    "p",
}


@dataclass
class Container:
    """A module without a class of its own: a layer, a tensor or another container under each name."""

    children: dict[str, Container | Layer | Tensor] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        return self._only_modules and sorted(self.children) == sorted(map(str, range(len(self.children))))

    @property
    def is_dict(self) -> bool:
        numbered = any(name.isdecimal() for name in self.children)
        taken = any(hasattr(nn.ModuleDict, name) for name in self.children)
        return self._only_modules and numbered and not taken and not self.is_list

    @property
    def _only_modules(self) -> bool:
        return bool(self.children) and not any(isinstance(child, Tensor) for child in self.children.values())


@dataclass(frozen=True)
class ModuleTree:
    """Where every layer and tensor of a network lives in the generated class."""

    network: Network
    root: Container
    layer_of: Mapping[Node, Layer]

    @staticmethod
    def of(network: Network) -> ModuleTree:
        layer_of = _writable_layers(network)
        by_path = {layer.path: layer for layer in layer_of.values()}
        root = Container()
        for name, tensor in network.tensors.items():
            owner = name.rpartition(".")[0]
            _place(root, owner if owner in by_path else name, by_path.get(owner, tensor))
        for path, layer in by_path.items():
            _place(root, path, layer)
        return ModuleTree(network, root, layer_of)

    @property
    def base_class(self) -> str:
        """`nn.ModuleList` or `nn.ModuleDict` where the top-level names are numbers."""
        return "nn.ModuleList" if self.root.is_list else "nn.ModuleDict" if self.root.is_dict else "nn.Module"

    @property
    def needs_namespace(self) -> bool:
        return any(
            not child.is_list and not child.is_dict for child in _containers(self.root) if child is not self.root
        )

    def constructor(self) -> list[Code]:
        """The statements of `__init__`."""
        if self.root.is_list:
            return [call("super().__init__", [list_of(self._list_items(self.root, ""))])]
        if self.root.is_dict:
            return [call("super().__init__", [self._dict_items(self.root, "")])]
        statements: list[Code] = ["super().__init__()"]
        for name, child in self.root.children.items():
            code = self._code(child, name)
            statements.append(
                prefixed(f"self.{name} = ", code)
                if is_plain(name)
                else call("setattr", ["self", literal_name(name), code])
            )
        return statements

    def expression(self, path: str) -> str:
        """How `forward` reaches a layer or tensor: `self.layer1[0].conv1`."""
        text, here = "self", self.root
        for part in path.split("."):
            if isinstance(here, Container) and here.is_list:
                text += f"[{part}]"
            elif isinstance(here, Container) and here.is_dict:
                text += f"[{literal_name(part)}]"
            elif is_plain(part):
                text += f".{part}"
            else:
                text = f"getattr({text}, {literal_name(part)})"
            here = here.children[part] if isinstance(here, Container) else None
        return text

    def _code(self, child: Container | Layer | Tensor, path: str) -> Code:
        if isinstance(child, Layer):
            return layer_code(child)
        if isinstance(child, Tensor):
            return self._tensor_code(child, path)
        if child.is_list:
            return call("nn.ModuleList", [list_of(self._list_items(child, path))])
        if child.is_dict:
            return call("nn.ModuleDict", [self._dict_items(child, path)])
        members = {name: self._code(member, f"{path}.{name}") for name, member in child.children.items()}
        plain = {name: code for name, code in members.items() if is_plain(name)}
        others = {name: code for name, code in members.items() if not is_plain(name)}
        unpacked = [prefixed("**", _dict(others))] if others else []
        return Group("Namespace(", (*(prefixed(f"{name}=", code) for name, code in plain.items()), *unpacked), ")")

    def _list_items(self, container: Container, path: str) -> list[Code]:
        prefix = f"{path}." if path else ""
        return [self._code(container.children[str(i)], f"{prefix}{i}") for i in range(len(container.children))]

    def _dict_items(self, container: Container, path: str) -> Code:
        prefix = f"{path}." if path else ""
        names = sorted(
            container.children, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0)
        )
        return _dict({name: self._code(container.children[name], prefix + name) for name in names})

    def _tensor_code(self, tensor: Tensor, name: str) -> Code:
        keywords = {} if tensor.dtype is torch.float32 else {"dtype": str(tensor.dtype)}
        sizes = [str(size) for size in tensor.shape] or ["()"]
        is_parameter = name in self.network.parameter_names and tensor.is_floating_point()
        return call("nn.Parameter" if is_parameter else "nn.Buffer", [call("torch.empty", sizes, keywords)])


def layer_code(layer: Layer) -> Code:
    """`nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)`: what differs from the defaults, squares as one number."""
    defaults = inspect.signature(layer.kind).parameters
    positional, keywords = [], {}
    for name, value in layer.arguments.items():
        square = _square(value)
        if name in _POSITIONAL:
            positional.append(_argument(value if name == "normalized_shape" else square))
        elif square != defaults[name].default and value != defaults[name].default:
            keywords[name] = _argument(square)
    return call(f"nn.{layer.kind.__name__}", positional, keywords)


def is_plain(name: str) -> bool:
    """ASCII only: Python normalises other identifiers, so two names could become one; inside a class it renames `__x`."""
    is_private = name.startswith("__") and not name.endswith("__")
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not is_private


def literal_name(name: str) -> str:
    """Double quotes unless the name has some; escapes as Python reads them (JSON's are other ones beyond U+FFFF)."""
    text = ascii(name)
    return text if '"' in text else f'"{text[1:-1]}"'


def _writable_layers(network: Network) -> dict[Node, Layer]:
    """Layers whose class has exactly the tensors that the network has at that path; functional dropout stays a call."""
    under: dict[str, set[str]] = {}
    for name in network.tensors:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            under.setdefault(".".join(parts[:depth]), set()).add(".".join(parts[depth:]))
    kept: dict[Node, Layer] = {}
    for node, layer in layers(network).items():
        with torch.device("meta"):
            own = set(layer.build().state_dict())
        is_module = own or layer.path == node.meta.get("path")
        if is_module and own == under.get(layer.path, set()):
            kept[node] = layer
    return kept


def _place(root: Container, path: str, item: Layer | Tensor) -> None:
    *parents, name = path.split(".")
    here = root
    for part in parents:
        here = here.children.setdefault(part, Container())
    here.children[name] = item


def _containers(container: Container) -> list[Container]:
    children = [child for child in container.children.values() if isinstance(child, Container)]
    return [container, *(inner for child in children for inner in _containers(child))]


def _dict(members: Mapping[str, Code]) -> Code:
    return Group("{", tuple(prefixed(f"{literal_name(name)}: ", code) for name, code in members.items()), "}")


def _square(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _argument(value: Any) -> Code:
    if isinstance(value, tuple):
        return str(value[0]) if len(value) == 1 else tuple_of(map(str, value))
    return json.dumps(value) if isinstance(value, str) else repr(value)
