"""A network as `nn.Module`s under their original names: the form for training and for delivery.

Inside the engine a layer is an ATen call on plain tensors. Training wants batch-norm and dropout with modes, optimisers
want parameters, and a reader wants `layer1.0.conv1`. `layers` finds the calls whose tensors all belong to one module
path; `to_module` builds those modules; `with_trained` takes the values back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from core.analysis.schema import bind, is_aten, operator_name
from core.network import Network

_CONVOLUTIONS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_TRANSPOSED = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
_CHANNEL_DROPOUTS = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Layer:
    """One call that is a module: its path, class and constructor arguments, and the node that it reads."""

    path: str
    kind: type[nn.Module]
    arguments: Mapping[str, Any]
    input: Node

    def build(self) -> nn.Module:
        return self.kind(**self.arguments)


def layers(network: Network) -> dict[Node, Layer]:
    """Every call of the graph that can be a module. Two calls of one path are kept only if they are the same module."""
    found: dict[Node, Layer] = {}
    own_paths = _dropout_modules(network)
    for node in network.graph.nodes:
        if node.op == "call_function" and is_aten(node.target):
            layer = _layer(node, network, own_paths)
            if layer is not None:
                found[node] = layer
    by_path: dict[str, set[tuple[Any, ...]]] = {}
    for layer in found.values():
        signature = (layer.kind, *sorted(layer.arguments.items(), key=lambda item: item[0]))
        by_path.setdefault(layer.path, set()).add(signature)
    return {node: layer for node, layer in found.items() if len(by_path[layer.path]) == 1}


def to_module(network: Network) -> nn.Module:
    """A trainable module with copies of the network's tensors; in eval mode.

    `forward(*inputs)` returns a tensor, or a tuple where the network has several outputs. `state_dict()` has the
    network's own names.
    """
    modules = layers(network)
    root = nn.Module()
    for layer in modules.values():
        if not _has(root, layer.path):
            built = layer.build()
            own = {**dict(built.named_parameters()), **dict(built.named_buffers())}
            with torch.no_grad():
                for name, tensor in own.items():
                    source = network.tensors.get(f"{layer.path}.{name}")
                    if source is not None:
                        tensor.copy_(source)
            _place(root, layer.path, built)
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in network.graph.nodes:
        if node in modules:
            copies[node] = graph.call_module(modules[node].path, (copies[modules[node].input],))
        elif node.op == "output":
            results = tuple(copies[result] for result in node.args[0])
            graph.output(results[0] if len(results) == 1 else results)
        elif node.op != "get_attr" or any(user not in modules or modules[user].input is node for user in node.users):
            if node.op == "get_attr":
                _place_tensor(root, node.target, network)
            copies[node] = graph.node_copy(node, lambda other: copies[other])
    graph.lint()
    return GraphModule(root, graph).eval()


def with_trained(network: Network, module: nn.Module) -> Network:
    """The network with the values of a module that `to_module` made of it, wherever it was trained."""
    state = module.state_dict()
    return network.with_tensors(
        {
            name: state[name].detach().to("cpu", tensor.dtype).clone() if name in state else tensor
            for name, tensor in network.tensors.items()
        }
    )


def _layer(node: Node, network: Network, own_paths: frozenset[str]) -> Layer | None:
    name, call = operator_name(node.target), bind(node)
    if name in _CONVOLUTIONS:
        return _convolution(_CONVOLUTIONS[name], call, network)
    if name in _TRANSPOSED:
        return _transposed_convolution(_TRANSPOSED[name], call, network)
    if name == "linear":
        return _linear(call, network)
    if name == "batch_norm" and not call["training"]:
        return _batch_norm(call, network)
    if name == "layer_norm":
        return _layer_norm(call, network)
    if name == "group_norm":
        return _group_norm(call, network)
    if name == "prelu":
        return _prelu(call, network)
    if name == "embedding":
        return _embedding(call, network)
    if name.removesuffix("_") in ("dropout", "feature_dropout") and not call["train"]:
        return _dropout(name, node, call, own_paths)
    return None


def _convolution(kind: type[nn.Module], call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight", "bias"), network)
    if path is None or call["weight"] is None:
        return None
    weight = network.tensors[call["weight"].target]
    rank = weight.ndim - 2
    padding = call["padding"]
    arguments = {
        "in_channels": weight.shape[1] * call["groups"],
        "out_channels": weight.shape[0],
        "kernel_size": tuple(weight.shape[2:]),
        "stride": _per_axis(call["stride"], rank),
        "padding": padding if isinstance(padding, str) else _per_axis(padding, rank),
        "dilation": _per_axis(call["dilation"], rank),
        "groups": call["groups"],
        "bias": call["bias"] is not None,
    }
    return Layer(path, kind, arguments, call["input"])


def _transposed_convolution(kind: type[nn.Module], call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight", "bias"), network)
    if path is None:
        return None
    weight = network.tensors[call["weight"].target]
    rank = weight.ndim - 2
    arguments = {
        "in_channels": weight.shape[0],
        "out_channels": weight.shape[1] * call["groups"],
        "kernel_size": tuple(weight.shape[2:]),
        **{name: _per_axis(call[name], rank) for name in ("stride", "padding", "output_padding", "dilation")},
        "groups": call["groups"],
        "bias": call["bias"] is not None,
    }
    return Layer(path, kind, arguments, call["input"])


def _linear(call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight", "bias"), network)
    if path is None:
        return None
    out_features, in_features = network.tensors[call["weight"].target].shape
    arguments = {"in_features": in_features, "out_features": out_features, "bias": call["bias"] is not None}
    return Layer(path, nn.Linear, arguments, call["input"])


def _batch_norm(call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight", "bias", "running_mean", "running_var"), network)
    if path is None or call["running_mean"] is None or (call["weight"] is None) != (call["bias"] is None):
        return None
    arguments = {
        "num_features": network.tensors[call["running_mean"].target].shape[0],
        "eps": call["eps"],
        "momentum": call["momentum"],
        "affine": call["weight"] is not None,
    }
    return Layer(path, _BATCH_NORMS[len(call["input"].meta["value"].shape)], arguments, call["input"])


def _layer_norm(call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight", "bias"), network)
    if path is None or call["weight"] is None or not all(isinstance(size, int) for size in call["normalized_shape"]):
        return None
    arguments = {
        "normalized_shape": tuple(call["normalized_shape"]),
        "eps": call["eps"],
        "bias": call["bias"] is not None,
    }
    return Layer(path, nn.LayerNorm, arguments, call["input"])


def _group_norm(call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight", "bias"), network)
    if path is None or call["weight"] is None or call["bias"] is None:
        return None
    channels = network.tensors[call["weight"].target].shape[0]
    arguments = {"num_groups": call["num_groups"], "num_channels": channels, "eps": call["eps"]}
    return Layer(path, nn.GroupNorm, arguments, call["input"])


def _prelu(call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight",), network)
    if path is None:
        return None
    slopes = network.tensors[call["weight"].target].numel()
    return Layer(path, nn.PReLU, {"num_parameters": slopes}, call["self"])


def _embedding(call: Mapping[str, Any], network: Network) -> Layer | None:
    path = _owner(call, ("weight",), network)
    if path is None or call["padding_idx"] >= 0 or call["scale_grad_by_freq"] or call["sparse"]:
        return None
    rows, width = network.tensors[call["weight"].target].shape
    return Layer(path, nn.Embedding, {"num_embeddings": rows, "embedding_dim": width}, call["indices"])


def _dropout(name: str, node: Node, call: Mapping[str, Any], own_paths: frozenset[str]) -> Layer | None:
    in_place = name.endswith("_")
    source = call["self" if in_place else "input"]
    rank = len(source.meta["value"].shape)
    kind = nn.Dropout if name.startswith("dropout") else _CHANNEL_DROPOUTS.get(rank)
    if kind is None:
        return None
    # A functional call gets a name beside the tensors, which has no state.
    path = node.meta.get("path", "")
    return Layer(
        path if path in own_paths else f"{node.name}_module", kind, {"p": call["p"], "inplace": in_place}, source
    )


def _owner(call: Mapping[str, Any], names: tuple[str, ...], network: Network) -> str | None:
    """The module path that owns exactly these tensors under these names, else None."""
    paths = set()
    for name in names:
        argument = call[name]
        if argument is None:
            continue
        if not isinstance(argument, Node) or argument.op != "get_attr":
            return None
        path, _, leaf = argument.target.rpartition(".")
        is_parameter = argument.target in network.parameter_names
        if leaf != name or not path or is_parameter == name.startswith("running_"):
            return None
        paths.add(path)
    return paths.pop() if len(paths) == 1 else None


def _dropout_modules(network: Network) -> frozenset[str]:
    """Paths at which nothing but dropout happens and below which there is nothing."""
    calls: dict[str, list[str]] = {}
    for node in network.graph.nodes:
        if node.op == "call_function":
            calls.setdefault(node.meta.get("path", ""), []).append(operator_name(node.target))
    paths = {node.meta.get("path") or "" for node in network.graph.nodes}
    owners = {owner for name in (*network.tensors, *paths) for owner in _ancestors(name)}
    return frozenset(
        path
        for path, names in calls.items()
        if path and path not in owners and all("dropout" in name for name in names)
    )


def _ancestors(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value) * (rank if len(value) == 1 else 1)


def _has(root: nn.Module, path: str) -> bool:
    module = root
    for part in path.split("."):
        if part not in module._modules:
            return False
        module = module._modules[part]
    return type(module) is not nn.Module


def _container(root: nn.Module, path: str) -> nn.Module:
    module = root
    for part in filter(None, path.split(".")):
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]
    return module


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    _container(root, parent).add_module(name, module)


def _place_tensor(root: nn.Module, name: str, network: Network) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = _container(root, parent)
    if hasattr(owner, leaf):
        return
    value: Tensor = network.tensors[name].detach().clone()
    if name in network.parameter_names and value.is_floating_point():
        owner.register_parameter(leaf, nn.Parameter(value))
    else:
        owner.register_buffer(leaf, value)
