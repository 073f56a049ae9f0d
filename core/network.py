"""Network: the one representation of a model inside the engine.

A network is an exported ATen graph plus its tensors under their original qualified names:

    graph    placeholder → get_attr "layer1.0.conv1.weight" → aten.conv2d.default(…) → … → output ((tensor, …),)
    tensors  {"layer1.0.conv1.weight": Tensor, "layer1.0.bn1.running_mean": Tensor, …}

Every node that yields tensors carries `node.meta["value"]`: a `TensorMeta` (or a tuple of them) whose shape is the one
**at batch 1**, so that analyses see plain integers even where the graph is symbolic; `node.meta["path"]` is the
qualified name of the module that made it ("" at the top). A symbolic size (`aten.sym_size`) has `meta["value"]` = int,
its value at batch 1. Values are immutable: passes return new networks and never touch the graph that they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

# Deep networks halve their images five or six times.
OTHER_SIZE = 64


@dataclass(frozen=True)
class TensorMeta:
    """Shape at batch 1 and element type of one value."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network: its name and its shape without the batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Interface:
    """What an uploaded graph promises to its callers beside its inputs and outputs; delivered ONNX files keep it.

    batch_size: 1 where it takes one image at a time, None for any number. batch_name: the name of that axis. open_axes:
    by input, the other axes that have no fixed size, with their names ("" without one); the batch is axis 0.
    closed_axes: those that the file leaves open and its network does not follow. element_type: of the file's inputs.
    tail: what follows the network's outputs in the file (an ONNX model from them to the file's own outputs), or
    nothing.
    """

    batch_size: int | None = None
    batch_name: str = "batch"
    open_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    closed_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    element_type: str = "float32"
    tail: bytes = b""

    def other_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """Another shape of an input, to try whether open axes are really open."""
        free = self.open_axes.get(spec.name, {})
        return tuple(size + OTHER_SIZE * (axis in free) for axis, size in enumerate(spec.shape, start=1))


@dataclass(frozen=True)
class Network:
    """An immutable CNN: graph, tensors by original name, and the names of the trainable ones."""

    graph: torch.fx.Graph
    tensors: Mapping[str, Tensor]
    parameter_names: frozenset[str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    architecture: str | None = None
    architecture_args: Mapping[str, Any] = field(default_factory=dict)
    interface: Interface = field(default_factory=Interface)

    @staticmethod
    def from_module(
        module: nn.Module,
        input_shapes: Mapping[str, Sequence[int]],
        *,
        architecture: str | None = None,
        architecture_args: Mapping[str, Any] | None = None,
    ) -> Network:
        """Export `module` (put in eval mode) with a dynamic batch dimension.

        input_shapes: shape of each positional input without the batch dimension, in call order.
        Raises EngineError("invalid_model") when the module cannot be exported.
        """
        # Here, because the exporter itself makes networks.
        from core.export import export_module

        return export_module(module, input_shapes, architecture, dict(architecture_args or {}))

    def module(self) -> torch.fx.GraphModule:
        """A runnable graph module over copies of nothing: it shares this network's tensors. Returns a tuple of
        outputs."""
        return build_module(self.graph, self.tensors, self.parameter_names)

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Evaluate on a batch without gradients."""
        with torch.no_grad():
            return self.module()(*inputs)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Network:
        """The same graph over other values; the names must be the same."""
        if tensors.keys() != self.tensors.keys():
            raise ValueError("with_tensors needs exactly the names of the network")
        return replace(self, tensors=MappingProxyType(dict(tensors)))

    def to(self, dtype: torch.dtype) -> Network:
        """Floating-point tensors converted to `dtype` (used by the float64 check)."""
        return self.with_tensors({n: t.to(dtype) if t.is_floating_point() else t for n, t in self.tensors.items()})

    def random_inputs(
        self,
        batch: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        *,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> tuple[Tensor, ...]:
        """Seeded standard-normal inputs of the right shapes, or of `shapes` (without the batch)."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [spec.shape for spec in self.inputs] if shapes is None else shapes
        return tuple(torch.randn((batch, *shape), generator=generator, dtype=dtype) for shape in shapes)


def build_module(
    graph: torch.fx.Graph, tensors: Mapping[str, Tensor], parameter_names: frozenset[str]
) -> torch.fx.GraphModule:
    """A GraphModule over `graph` holding the tensors that it reads under their qualified names (sharing storage)."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        *path, leaf = node.target.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        tensor = tensors[node.target]
        if node.target in parameter_names and tensor.is_floating_point():
            owner.register_parameter(leaf, nn.Parameter(tensor.detach(), requires_grad=False))
        else:
            owner.register_buffer(leaf, tensor)
    return torch.fx.GraphModule(root, graph)
