"""An ONNX file goes out as it came in: the axes that were open or fixed, and what followed the network.

The network is written with an open batch axis and fixed sizes. Where the upload took one image at a time, the batch is
fixed again; where it left height and width open, and the imported network was shown to follow them, they are open again;
and the tail (`core.network.Interface`) is put back behind the network, under the file's own output names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import version_converter

from core.deliver.difference import relative_error
from core.deliver.onnx_graph import DEFAULT_OPSET, FIRST_OPSET, require_opset
from core.errors import EngineError, first_line
from core.network import Interface, Network

_TOLERANCE = 1e-4
# Of whole numbers and truth values, which rounding may turn over.
_DIFFERENT_SHARE = 0.01


def opset_beside(network: Network, asked: int | None) -> int:
    """The opset that a file of this network is written in: what is asked for, else the newest that its tail can be said in.

    Raises EngineError("invalid_request") where the tail cannot be said in it, or in none that is written.
    """
    require_opset(DEFAULT_OPSET if asked is None else asked)
    if not network.interface.tail:
        return DEFAULT_OPSET if asked is None else asked
    tail = onnx.ModelProto.FromString(network.interface.tail)
    own = _opset(tail)
    choices = [DEFAULT_OPSET, max(own, FIRST_OPSET)] if asked is None else [asked]
    for opset in choices:
        try:
            _converted(tail, opset)
        except Exception as error:  # whatever the library's converter raises
            reason = first_line(error)
            continue
        return opset
    what = f"What follows the network in the uploaded file, of opset {own}, cannot be written in opset {choices[-1]} ({reason})."
    if asked is None:
        raise EngineError(
            "invalid_request",
            f"{what} Leave the output onnx out, or export the file in a newer opset.",
            param="/outputs",
        )
    raise EngineError("invalid_request", f"{what} Ask for another opset.", param="/onnx/opset")


def with_interface(model: onnx.ModelProto, network: Network) -> onnx.ModelProto:
    """The same model with the upload's axes and tail, which the model's opset must have words for (`opset_beside`)."""
    interface = network.interface
    if interface == Interface():
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    for value in result.graph.input:
        _set_axes(value, interface, interface.open_axes.get(value.name, {}))
    if interface.tail:
        _append(result, interface.tail)
    else:
        for value in result.graph.output:
            _set_axes(value, interface, {})
    if interface.open_axes:
        _forget_sizes(result)
    return result


def compare_interface(data: bytes, network: Network) -> None:
    """Run the finished file as its users will, against PyTorch followed by the tail. Raises EngineError("internal").

    What a tail makes of two scores that are equal up to rounding may be quite different, so the values in front of it are
    compared with PyTorch's, and its results with those of the tail alone on these very values.
    """
    interface = network.interface
    if interface == Interface():
        return
    names = [spec.name for spec in network.outputs]
    session = _session(_showing(data, names) if interface.tail else data)
    own = [output.name for output in session.get_outputs()]
    sizes = [tuple(spec.shape for spec in network.inputs)]
    if interface.open_axes:
        sizes.append(tuple(interface.other_shape(spec) for spec in network.inputs))
    for shapes in sizes:
        inputs = network.random_inputs(batch=1, seed=1, shapes=shapes)
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, inputs, strict=True)}
        found = dict(zip(own, session.run(None, feeds), strict=True))
        wanted = dict(zip(names, (value.numpy() for value in network.run(*inputs)), strict=True))
        if interface.tail:
            tail = _session(interface.tail)
            given = {**feeds, **{name: found[name] for name in names}}
            results = tail.run(None, {one.name: given[one.name] for one in tail.get_inputs()})
            wanted |= dict(zip((one.name for one in tail.get_outputs()), results, strict=True))
        for name, want in wanted.items():
            _compare(name, found[name], want, shapes)


def _compare(name: str, got: np.ndarray, want: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> None:
    exact = not np.issubdtype(want.dtype, np.floating)
    error = float(np.mean(got != want)) if exact and got.shape == want.shape else relative_error(got, want)
    if not error <= (_DIFFERENT_SHARE if exact else _TOLERANCE):
        raise EngineError(
            "internal",
            f"The finished ONNX file differs from the network by {error:.1e} (relative) at output {name!r} for inputs "
            f"{[list(shape) for shape in shapes]}; it is not delivered.",
        )


def _showing(data: bytes, names: Sequence[str]) -> bytes:
    """The same file with the values in front of its tail as outputs, too."""
    model = onnx.ModelProto.FromString(data)
    there = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return model.SerializeToString()


def _session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _set_axes(value: onnx.ValueInfoProto, interface: Interface, open_axes: object) -> None:
    dims = value.type.tensor_type.shape.dim
    if dims[0].HasField("dim_param"):
        dims[0].Clear()
        if interface.batch_size is None:
            dims[0].dim_param = interface.batch_name
        else:
            dims[0].dim_value = interface.batch_size
    for axis, name in dict(open_axes).items():
        dims[axis].Clear()
        if name:
            dims[axis].dim_param = name


def _forget_sizes(model: onnx.ModelProto) -> None:
    """Outputs follow the open axes; which of their sizes do is for shape inference to say."""
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value != 1:
                dim.Clear()


def _append(model: onnx.ModelProto, data: bytes) -> None:
    tail = _converted(onnx.ModelProto.FromString(data), _opset(model))
    outside = {value.name for value in (*tail.graph.input, *tail.graph.output)}
    taken = {name for node in model.graph.node for name in node.output} | {one.name for one in model.graph.initializer}
    taken |= {value.name for value in model.graph.input}
    final = [value.name for value in tail.graph.output]
    own = {value.name for value in tail.graph.input}
    # A value inside the network may by chance have the name of one of the file's outputs.
    _rename(model.graph, {name: _free(name, taken | outside) for name in taken & set(final) - own})

    def renamed(name: str) -> str:
        return name if not name or name in outside else f"tail/{name}"

    for node in tail.graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        node.name = f"tail/{node.name}" if node.name else ""
    for constant in tail.graph.initializer:
        constant.name = renamed(constant.name)
    model.graph.node.extend(tail.graph.node)
    model.graph.initializer.extend(tail.graph.initializer)
    del model.graph.output[:]
    model.graph.output.extend(tail.graph.output)


def _opset(model: onnx.ModelProto) -> int:
    return next(one.version for one in model.opset_import if one.domain == "")


def _converted(tail: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    return tail if _opset(tail) == opset else version_converter.convert_version(tail, opset)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for one in graph.initializer:
        one.name = names.get(one.name, one.name)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
