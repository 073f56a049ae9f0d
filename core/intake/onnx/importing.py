"""From the bytes of an `.onnx` file to a `Network`.

parse, refuse by name      proto, refusal
bind the input shapes      binding
run the handlers           handlers, builder
cut where images end       tail
compare with ONNX Runtime  reference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import onnx
import torch

from core.errors import EngineError
from core.intake.onnx.binding import Binding, bind_inputs
from core.intake.onnx.builder import Builder, aten
from core.intake.onnx.handlers import HANDLERS
from core.intake.onnx.names import safe_name
from core.intake.onnx.node import OnnxNode, read_attributes
from core.intake.onnx.proto import parse, tensor
from core.intake.onnx.reference import agrees_at, require_agreement
from core.intake.onnx.refusal import require_readable, require_valid
from core.intake.onnx.tail import LAYER_OPERATORS, build_tail
from core.intake.onnx.values import MANY, Computed, Known, NotPerImage, Unsupported, Value
from core.intake.refusals import invalid
from core.network import Interface, Network, TensorSpec

InputShape = Sequence[int] | Mapping[str, Sequence[int]]
# By input, axes after the batch with their names.
Axes = Mapping[str, Mapping[int, str]]


def read_onnx(data: memoryview, input_shape: InputShape | None = None) -> Network:
    """The network in an ONNX file, equal to what ONNX Runtime computes from it.

    input_shape: without the batch dimension, of the one input or of each by name; needed where the file leaves height or
    width open. Raises EngineError: unsupported_format naming everything that is not read, invalid_model, shape_mismatch,
    too_large.
    """
    model, element_type = parse(data)
    opset = require_readable(model)
    require_valid(model)
    binding = bind_inputs(model, input_shape)
    attempt = _Import(model, opset, binding, element_type)
    try:
        return attempt.network()
    except EngineError as error:
        if not attempt.builder.kept_batch:
            raise
        first = error
    # What the batch was kept for does not come: then the Squeeze means what it says, and is the end of the network.
    try:
        return _Import(model, opset, binding, element_type, squeezes_batch=True).network()
    except EngineError as error:
        # Where that is no reading either, the reason is what stopped the first one.
        raise first from error


class _Import:
    """One pass over the nodes of a graph."""

    def __init__(
        self, model: onnx.ModelProto, opset: int, binding: Binding, element_type: str, *, squeezes_batch: bool = False
    ) -> None:
        self.model = model
        self.opset = opset
        self.binding = binding
        self.element_type = element_type
        self.builder = Builder(dynamic=binding.dynamic, squeezes_batch=squeezes_batch)
        self.values: dict[str, Value] = {}
        self.operators: dict[str, str] = {}
        # What is computed beside and nobody reads (a mask, indices) is as good as not asked for.
        self.read = {name for node in model.graph.node for name in node.input}
        self.read.update(output.name for output in model.graph.output)
        self.tail: list[onnx.NodeProto] = []
        self.tail_values: dict[str, str] = {}

    def network(self) -> Network:
        for proto in self.model.graph.initializer:
            value = tensor(proto, f"Initializer {proto.name[:80]!r}")
            if value.is_floating_point() and not bool(value.isfinite().all()) and value.numel() > 1:
                raise invalid(f"Initializer {proto.name[:80]!r} has values that are not finite; the file is damaged.")
            self.values[proto.name] = Known.of(value, proto.name, trainable=_is_trainable(value))
        for spec in self.binding.inputs:
            self.values[spec.name] = self.builder.input(spec.name, spec.shape)
        for index, node in enumerate(self.model.graph.node):
            self._node(node, _label(node, index))
        self._turn_outputs()
        return self._finish()

    def _turn_outputs(self) -> None:
        """Outputs with their images along another axis than the first (as [time, batch, classes]) are turned, and turned
        back behind the network. Raises EngineError("unsupported_format") for one that holds no images.
        """
        for name in dict.fromkeys(output.name for output in self.model.graph.output):
            value = self.values.get(name)
            if not isinstance(value, Computed) or name in self.tail_values:
                continue
            try:
                axis = value.batch_axis
            except NotPerImage as reason:
                raise _no_images(name, value, str(reason)) from reason
            if axis is None:
                raise _no_images(name, value, "it has no axis of images")
            if axis:
                self._turn(name, value, axis)

    def _turn(self, name: str, value: Computed, axis: int) -> None:
        order = [axis, *(one for one in range(value.rank) if one != axis)]
        turned = f"{name}/images_first"
        while turned in self.values or turned in self.tail_values:
            turned += "_"
        shown = f"output {name[:120]!r} (images first)"
        self.operators[turned] = shown
        self.values[turned] = self.builder.call(aten.permute.default, value, order)
        # In the file, too: ONNX Runtime is asked for it.
        self.model.graph.node.append(onnx.helper.make_node("Transpose", [name], [turned], perm=order))
        back = [order.index(one) for one in range(value.rank)]
        self.tail.insert(0, onnx.helper.make_node("Transpose", [turned], [name], perm=back))
        self.tail_values[name] = f"{shown}: it has its images along axis {axis}"

    def _node(self, proto: onnx.NodeProto, label: str) -> None:
        shown = f"node {label[:120]!r} ({proto.op_type})"
        self.operators.update(dict.fromkeys(filter(None, proto.output), shown))
        before = next((self.tail_values[name] for name in proto.input if name in self.tail_values), None)
        if before is not None or proto.op_type not in HANDLERS:
            self._to_tail(proto, shown, before or f"{shown} has no form in the network")
            return
        # Dangling names are refused by the library's check.
        operands = tuple(self.values[name] if name else None for name in proto.input)
        wanted = tuple(name if name in self.read else "" for name in proto.output)
        node = OnnxNode(proto.op_type, label, self.opset, operands, wanted, read_attributes(proto, label))
        self.builder.path = safe_name(label)
        try:
            result = HANDLERS[proto.op_type](self.builder, node)
        except NotPerImage as reason:
            self._to_tail(proto, shown, f"{shown}: {reason}")
            return
        except Unsupported as reason:
            raise EngineError(
                "unsupported_format",
                f"The ONNX graph uses {proto.op_type} in a way that is not read, at {shown}: {reason}.",
                details={"node": label, "operator": proto.op_type},
            ) from reason
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(proto.output, results, strict=False):
            if name:
                self.values[name] = _named(value, name)

    def _to_tail(self, proto: onnx.NodeProto, shown: str, reason: str) -> None:
        if proto.op_type in LAYER_OPERATORS:
            raise EngineError(
                "unsupported_format",
                f"The layers of the ONNX graph must compute one result per image of a batch. From there on they do not: "
                f"{reason}. The first layer behind that is {shown}. Export the network with a dynamic batch, or without "
                "what comes before that layer.",
                details={"reason": reason},
            )
        self.tail.append(proto)
        self.tail_values.update(dict.fromkeys(filter(None, proto.output), reason))

    def _finish(self) -> Network:
        outputs, renamed = self._outputs()
        results = tuple(self.builder.lift(self.values[name]).node for name in outputs)
        end = self.builder.graph.output(results)
        end.meta = {"path": ""}
        tail = self._tail(outputs, renamed)
        builder = self.builder
        builder.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        read = {node.target for node in builder.graph.nodes if node.op == "get_attr"}
        tensors = {name: value for name, value in builder.tensors.items() if name in read}
        builder.graph.lint()
        network = Network(
            graph=builder.graph,
            tensors=MappingProxyType(tensors),
            parameter_names=frozenset(builder.parameter_names & read),
            inputs=self.binding.inputs,
            outputs=tuple(TensorSpec(name, self.values[name].shape[1:], self.values[name].dtype) for name in outputs),
            interface=Interface(
                batch_size=None if self.binding.dynamic else 1,
                batch_name=self.binding.batch_name,
                element_type=self.element_type,
                tail=tail,
            ),
        )
        self._require_work(network)
        nodes = {name: value.node for name, value in self.values.items() if isinstance(value, Computed)}
        require_agreement(self.model, network, nodes, self.operators, dynamic=self.binding.dynamic)
        return self._opened(network)

    def _opened(self, network: Network) -> Network:
        """With the axes that the file leaves open, if the network follows them: sizes that were computed may be literals."""
        if not self.binding.open_axes:
            return network
        wanted = self.binding.open_axes
        if self._follows(network, wanted):
            return _with_axes(network, wanted, {})
        # An axis that the network cannot follow, such as channels, is no reason to close the others.
        alone = [(name, axis) for name, axes in wanted.items() for axis in axes]
        followed = [one for one in alone if self._follows(network, _chosen(wanted, [one]))]
        if not self._follows(network, _chosen(wanted, followed)):
            followed = []
        closed = [one for one in alone if one not in followed]
        return _with_axes(network, _chosen(wanted, followed), _chosen(wanted, closed))

    def _follows(self, network: Network, axes: Axes) -> bool:
        opened = _with_axes(network, axes, {})
        return agrees_at(self.model, opened, [opened.interface.other_shape(spec) for spec in opened.inputs])

    def _outputs(self) -> tuple[list[str], dict[str, str]]:
        """Names of the network's outputs: the file's, then what the tail reads. Also: second names of one value."""
        names: list[str] = []
        renamed: dict[str, str] = {}
        by_node: dict[object, str] = {}
        wanted = [output.name for output in self.model.graph.output if output.name not in self.tail_values]
        read = [name for node in self.tail for name in node.input if name not in self.tail_values]
        wanted += [name for name in read if isinstance(self.values.get(name), Computed)]
        for name in dict.fromkeys(wanted):
            value = self.values[name]
            if isinstance(value, Known):
                raise invalid(f"Output {name[:80]!r} of the ONNX graph does not depend on its inputs; remove it.")
            if value.node.op == "placeholder" or value.node in by_node:
                renamed[name] = by_node.get(value.node) or self._input_name(value)
            else:
                by_node[value.node] = name
                names.append(name)
        if not names:
            raise invalid("No output of the ONNX graph is computed from its inputs by a network.")
        return names, renamed

    def _tail(self, outputs: list[str], renamed: dict[str, str]) -> bytes:
        if not self.tail and not renamed:
            return b""
        made = {name for node in self.tail for name in node.output}
        read = {name for node in self.tail for name in node.input if name and name not in made}
        constants = {}
        for name in read:
            value = self.values[name]
            if isinstance(value, Known):
                if not value.fixed and self.binding.dynamic:
                    raise EngineError(
                        "unsupported_format",
                        f"The end of the ONNX graph ({next(iter(self.tail_values.values()))}) computes with the batch size. "
                        "Export the network for one image at a time (batch 1).",
                    )
                constants[name] = value.one.contiguous()
        specs = {spec.name: spec for spec in self.binding.inputs if spec.name in read | set(renamed.values())}
        specs |= {name: TensorSpec(name, self.values[name].shape[1:], self.values[name].dtype) for name in outputs}
        renamed = {name: source for name, source in renamed.items() if name != source}
        return build_tail(self.model, self.opset, self.tail, specs, renamed, constants)

    def _input_name(self, value: Computed) -> str:
        return next(spec.name for spec in self.binding.inputs if self.values[spec.name].node is value.node)

    def _require_work(self, network: Network) -> None:
        if not network.parameter_names:
            raise invalid("The ONNX graph has no weights, so there is nothing to compress.")


def _with_axes(network: Network, open_axes: Axes, closed_axes: Axes) -> Network:
    return replace(network, interface=replace(network.interface, open_axes=open_axes, closed_axes=closed_axes))


def _chosen(axes: Axes, kept: Sequence[tuple[str, int]]) -> dict[str, dict[int, str]]:
    found = {name: {axis: label for axis, label in free.items() if (name, axis) in kept} for name, free in axes.items()}
    return {name: free for name, free in found.items() if free}


def _no_images(name: str, value: Computed, reason: str) -> EngineError:
    return EngineError(
        "unsupported_format",
        f"Output {name[:80]!r} of the ONNX graph is not one result per image: {reason} (its shape is {list(value.shape)} for "
        f"one image and {list(value.shape_many)} for {MANY}). Export the network without it.",
    )


def _label(proto: onnx.NodeProto, index: int) -> str:
    """The node's own name; without one, that of its output."""
    return proto.name or next((name for name in proto.output if name), f"{proto.op_type}_{index}")


def _is_trainable(value: torch.Tensor) -> bool:
    """Initializers are weights, unless they are single numbers or no floats."""
    return value.is_floating_point() and value.numel() > 1


def _named(value: Value, name: str) -> Value:
    return Known(value.one, value.many, name) if isinstance(value, Known) and not value.name else value
