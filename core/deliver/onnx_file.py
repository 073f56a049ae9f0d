"""`model.onnx`: ordinary operators, one file, a dynamic batch, and proof that ONNX Runtime computes the same.

The exporter fuses batch-norms into convolutions. It also leaves stack traces with paths of this machine in the file's
metadata; everything of that kind is removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import torch

from core.deliver.difference import relative_error
from core.errors import EngineError
from core.module_form import to_module
from core.network import Network
from core.version import VERSION

OPSET = 20
# Protobuf cannot hold more in one file.
_LARGEST_BYTES = 2**31 - 1
_TOLERANCE = 1e-4
_CHECKED_BATCHES = (1, 3)


def write_onnx(network: Network, path: Path) -> None:
    """Export, strip, check and compare with PyTorch. Raises EngineError where the two disagree by more than 1e-4."""
    # Before the export, too: the exporter fails obscurely on what one file cannot hold.
    _require_one_file(sum(tensor.nbytes for tensor in network.tensors.values()))
    model = _export(network)
    _strip(model)
    _require_one_file(model.ByteSize())
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    _compare(network, path)


def _require_one_file(size_bytes: int) -> None:
    if size_bytes > _LARGEST_BYTES:
        raise EngineError(
            "too_large",
            f"As ONNX the network takes {size_bytes:,} bytes, and one ONNX file holds at most {_LARGEST_BYTES:,}. "
            "Ask for the safetensors output instead.",
            param="/outputs",
        )


def open_session(path: Path, *, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU; all threads unless said otherwise."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _export(network: Network) -> onnx.ModelProto:
    inputs = network.random_inputs(batch=2, seed=0)
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            to_module(network),
            inputs,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            input_names=[spec.name for spec in network.inputs],
            output_names=[spec.name for spec in network.outputs],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on standard output and through warnings that users can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Remove documentation and metadata of the export: they name files of the machine that ran it."""
    model.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "pennyweight", VERSION
    graph = model.graph
    graph.name = "network"
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _compare(network: Network, path: Path) -> None:
    session = open_session(path)
    for batch in _CHECKED_BATCHES:
        inputs = network.random_inputs(batch=batch, seed=batch)
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, inputs, strict=True)}
        expected = network.run(*inputs)
        results = session.run([spec.name for spec in network.outputs], feeds)
        for spec, got, want in zip(network.outputs, results, expected, strict=True):
            error = relative_error(got, want.numpy())
            if not error <= _TOLERANCE:
                raise EngineError(
                    "internal",
                    f"ONNX Runtime differs from PyTorch by {error:.1e} (relative) at output {spec.name!r} for batch "
                    f"{batch}; the file is not delivered.",
                )
