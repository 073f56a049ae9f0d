"""From the bytes of a `.pt2` file to a `Network`.

read the archive     archive, fields
refuse by name       operators
bind the inputs      binding
rebuild the graph    graph, calls, batch
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from core.errors import EngineError, first_line
from core.export import unflatten_experts
from core.intake.onnx.names import safe_identifier
from core.intake.pt2.archive import Program, read_program
from core.intake.pt2.batch import MANY
from core.intake.pt2.binding import Signature, read_signature
from core.intake.pt2.calls import Made
from core.intake.pt2.fields import take
from core.intake.pt2.graph import GraphReader
from core.intake.pt2.operators import require_known
from core.intake.refusals import invalid, unsupported
from core.network import Interface, Network, TensorSpec

InputShape = Sequence[int] | Mapping[str, Sequence[int]]
TOLERANCE = 1e-4
MAX_NAME = 256
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
_TAKEN = frozenset(dir(nn.Module)) | frozenset(dir(GraphModule)) | frozenset(vars(nn.Module())) | {"graph", "code"}


def read_pt2(data: memoryview, input_shape: InputShape | None = None) -> Network:
    """The network in an archive of `torch.export.save`, from its graph as JSON and its tensors as bytes.

    input_shape: without the batch dimension, of the one input or of each by name; by default what the file was exported
    with. Raises EngineError: unsafe_model, invalid_model, unsupported_format, shape_mismatch, too_large.
    """
    program = read_program(data)
    module = take(program.document, "graph_module", dict, "The program")
    graph = take(module, "graph", dict, "The program")
    require_known(graph)
    signature = read_signature(module, input_shape)
    tensors = _tensors(program, signature)
    reader = GraphReader(fixed=signature.fixed, float_type=signature.float_type)
    inputs = tuple(
        TensorSpec(_identifier(name, index), shape) for index, (name, shape) in enumerate(signature.inputs.items())
    )
    for name, spec in zip(signature.inputs, inputs, strict=True):
        reader.input(name, spec.name, spec.shape)
    for name, qualified in signature.stored.items():
        reader.stored(name, qualified, tensors[qualified])
    try:
        reader.nodes(graph)
    except EngineError as error:
        if signature.fixed is None or error.code != "invalid_model":
            raise
        raise _mixed(signature.fixed, error.message) from error
    outputs = _finish(reader, signature)
    unflatten_experts(reader.graph, tensors)
    reader.graph.lint()
    network = Network(
        graph=reader.graph,
        tensors=MappingProxyType(tensors),
        parameter_names=signature.parameters & tensors.keys(),
        inputs=inputs,
        outputs=outputs,
        interface=Interface(
            batch_size=1 if signature.fixed == 1 else None,
            closed_axes={
                spec.name: dict.fromkeys(axes, "")
                for spec, axes in zip(inputs, signature.open_axes.values(), strict=True)
                if axes
            },
            element_type=str(signature.float_type).removeprefix("torch."),
        ),
    )
    if not network.parameter_names:
        raise invalid("The network in the .pt2 file has no weights, so there is nothing to compress.")
    if signature.fixed is not None:
        _require_per_image(network, signature.fixed)
    return network


def _tensors(program: Program, signature: Signature) -> dict[str, Tensor]:
    """The state under its own names, then the constants that the graph reads."""
    read = set(signature.stored.values())
    constants = {
        # Those in the element type of the inputs become float32 with them and with the weights.
        name: value.to(torch.float32) if value.dtype is signature.float_type else value
        for name, value in program.constants.items()
        if name in read and name not in program.weights
    }
    tensors = {**program.weights, **constants}
    missing = sorted(read - tensors.keys())
    if missing:
        raise invalid(f"The graph in the .pt2 file reads tensors that the archive does not hold: {missing[:10]}.")
    parents = {name[: match.start()] for name in tensors for match in re.finditer(r"\.", name)}
    for name in tensors:
        if (
            not _NAME.fullmatch(name)
            or len(name) > MAX_NAME
            or not _TAKEN.isdisjoint(name.split("."))
            or name in parents
        ):
            shown = name[:80].encode("ascii", "backslashreplace").decode()
            raise invalid(f"A tensor of the .pt2 file is named {shown!r}, which no module of PyTorch can have.")
    return tensors


def _identifier(name: str, index: int) -> str:
    plain = safe_identifier(name)
    return plain if plain == name else f"input_{index}"


def _finish(reader: GraphReader, signature: Signature) -> tuple[TensorSpec, ...]:
    """End the graph with its outputs, without what nobody reads."""
    found: list[Made] = []
    for index, (value, name) in enumerate(signature.outputs):
        if value not in reader.values:
            raise invalid(f"Output {value[:80]!r} of the .pt2 file is computed nowhere; the file is damaged.")
        found.append(reader.values[value])
        _require_images(found[-1], f"Output {(name or index)!r:.80} of the .pt2 file")
    reader.graph.output(tuple(made.node for made in found)).meta = {"path": ""}
    _without_empty_conversions(reader.graph)
    reader.graph.eliminate_dead_code(_matters)
    specs = []
    # In ONNX an input and an output of one name would be one value.
    names = {node.target for node in reader.graph.nodes if node.op == "placeholder"}
    for index, (made, (_, name)) in enumerate(zip(found, signature.outputs, strict=True)):
        default = "output" if len(found) == 1 else f"output_{index}"
        plain = name if name and name.isprintable() and len(name) <= MAX_NAME and name not in names else default
        while plain in names:
            plain += "_"
        names.add(plain)
        specs.append(TensorSpec(plain, tuple(made.one.shape[1:]), made.one.dtype))
    return tuple(specs)


def _require_images(made: Made, what: str) -> None:
    """Raises EngineError("unsupported_format") for an output that is not [batch, …]."""
    if not isinstance(made.one, Tensor):
        raise unsupported(f"{what} is a number and no tensor; return tensors only, and export it again.")
    one, many = (tuple(value.shape) for value in (made.one, made.many))
    if one and many == (MANY * one[0], *one[1:]):
        return
    axis = next((axis for axis, sizes in enumerate(zip(one, many, strict=True)) if sizes[0] != sizes[1]), None)
    found = "no axis of images" if axis is None else f"its images along axis {axis}"
    raise unsupported(
        f"{what} has {found} (its shape is {list(one)} for one image and {list(many)} for {MANY}); outputs are [batch, …]. "
        "Return it so, and export the network again."
    )


def _without_empty_conversions(graph: Graph) -> None:
    """`x.float()` of what is float32 already, as exported graphs have it in every block."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.to.dtype or len(node.args) > 3 or node.kwargs:
            continue
        source = node.args[0]
        if node.args[2:] in ((), (False,)) and source.meta["value"].dtype == node.meta["value"].dtype:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _matters(node: Node) -> bool:
    writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return node.op in ("placeholder", "output") or writes


def _require_per_image(network: Network, fixed: int) -> None:
    """The sizes that held the batch were read aright where several images give what each gives alone.

    Raises EngineError("invalid_model").
    """
    inputs = network.random_inputs(batch=MANY, seed=0)
    try:
        together = network.run(*inputs)
        alone = [network.run(*(one[image : image + 1] for one in inputs)) for image in range(MANY)]
        errors = [
            float((whole - torch.cat(parts)).double().norm() / whole.double().norm().clamp_min(1e-12))
            for whole, parts in zip(together, zip(*alone, strict=True), strict=True)
            if whole.is_floating_point()
        ]
    except RuntimeError as error:
        raise _mixed(fixed, first_line(error)) from error
    if not all(error <= TOLERANCE for error in errors if error == error):
        raise _mixed(fixed, f"its results for {MANY} images at once differ by {max(errors):.1e} from those one by one")


def _mixed(fixed: int, reason: str) -> EngineError:
    return invalid(
        f"The .pt2 file was exported for exactly {fixed} image(s), and cannot be read for any number: {reason.rstrip('.')}. Export it "
        'with a dynamic batch: torch.export.export(model, inputs, dynamic_shapes=({0: torch.export.Dim("batch")},)).'
    )
