"""`model.pt2`: the network as `torch.export.save` writes it, for any number of images, with no pickle in the archive.

    program = torch.export.load("model.pt2")
    scores = program.module()(images)

The example inputs, which the library would pickle, are dropped, and so are stack traces, which name files of the machine
that wrote them. What was written is read back by intake's own reader and compared with the network before it is delivered.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch.export import ExportedProgram

from core.deliver.difference import relative_error
from core.errors import EngineError, first_line
from core.intake.pt2 import read_pt2
from core.module_form import to_module
from core.network import Network

_TOLERANCE = 1e-5
_CHECKED_BATCHES = (1, 3)
# They name files of this machine, and numbers that differ from run to run.
_TRACES = ("stack_trace", "from_node")


def write_pt2(network: Network, path: Path) -> None:
    """Raises EngineError: invalid_request where PyTorch cannot export the network, internal where the file differs."""
    program = _exported(network)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for trace in _TRACES:
                node.meta.pop(trace, None)
    # The library pickles them; without them there is nothing in the archive but JSON and raw numbers.
    program.example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    _compare(network, buffer.getbuffer())
    path.write_bytes(buffer.getbuffer())


def _exported(network: Network) -> ExportedProgram:
    inputs = network.random_inputs(batch=2, seed=0)
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(to_module(network), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    # Whatever the exporter cannot do with a graph, it says in errors of many kinds.
    except Exception as error:
        raise EngineError(
            "invalid_request",
            f"The network cannot be written as .pt2 ({first_line(error)}). Ask for the onnx or safetensors output instead.",
            param="/outputs",
        ) from error


def _compare(network: Network, data: memoryview) -> None:
    again = read_pt2(data)
    for batch in _CHECKED_BATCHES:
        inputs = network.random_inputs(batch=batch, seed=batch)
        for spec, got, want in zip(network.outputs, again.run(*inputs), network.run(*inputs), strict=True):
            error = relative_error(got.numpy(), want.numpy())
            if not error <= _TOLERANCE:
                raise EngineError(
                    "internal",
                    f"model.pt2 differs from the network by {error:.1e} (relative) at output {spec.name!r} for batch {batch}; "
                    "it is not delivered.",
                )
