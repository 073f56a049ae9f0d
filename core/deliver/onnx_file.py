"""`model.onnx`: ordinary operators, one file, a dynamic batch, and proof that ONNX Runtime computes the same.

`core.deliver.onnx_graph` writes it; what came as ONNX keeps its own axes and outputs (`core.deliver.onnx_interface`).
Networks with an operator that it has no rule for go through torch's exporter, which leaves stack traces with paths of
this machine in the file's metadata; everything of that kind is removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch

from core.deliver.difference import relative_error
from core.deliver.onnx_graph import emit
from core.deliver.onnx_interface import compare_interface, opset_beside, with_interface
from core.errors import EngineError
from core.module_form import to_module
from core.network import Network
from core.version import VERSION

_LOGGER = logging.getLogger(__name__)
# Protobuf cannot hold more in one file.
_LARGEST_BYTES = 2**31 - 1
_TOLERANCE = 1e-4
# A network may magnify rounding: two correct runs in float32 then differ by more, though not by orders of magnitude.
_ROUNDINGS, _LARGEST_ROUNDING = 4.0, 1e-2
_CHECKED_BATCHES = (1, 3)


def write_onnx(
    network: Network, path: Path, *, compare: bool = True, fold: bool = True, opset: int | None = None
) -> None:
    """Write by our own rules, or by torch's exporter where they do not cover an operator; check and compare with PyTorch.

    compare: only a file that nobody gets, such as one whose speed is measured, may go without. fold: batch-norms into
    the convolutions before them; without, the file has the network's own weights. opset: if left out, the newest.
    Raises EngineError where ONNX Runtime and PyTorch disagree, and for an opset that cannot hold the network.
    """
    opset = opset_beside(network, opset)
    # Before the export, too: the exporter fails obscurely on what one file cannot hold.
    _require_one_file(sum(tensor.nbytes for tensor in network.tensors.values()))
    try:
        _write(emit(network, fold=fold, opset=opset), network, path, compare)
    except Exception as reason:
        # Whatever it is, the other way has none of these rules, and the same checks.
        _LOGGER.warning("Writing ONNX by torch's exporter: %s", str(reason)[:300])
        path.unlink(missing_ok=True)
        _write(_by_torch(network, reason, opset), network, path, compare)


def onnx_bytes(network: Network, *, fold: bool = True, opset: int | None = None) -> bytes:
    """The file that `write_onnx` writes, uncompared."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        write_onnx(network, path, compare=False, fold=fold, opset=opset)
        return path.read_bytes()


def _by_torch(network: Network, reason: Exception, opset: int) -> onnx.ModelProto:
    try:
        model = _exported_by_torch(network, opset)
    # Whatever the exporter cannot do with a graph, it says in errors of many kinds.
    except Exception as error:
        raise EngineError(
            "invalid_request",
            f"The network cannot be written as ONNX ({str(reason)[:200]}). Ask for the safetensors output instead.",
            param="/outputs",
        ) from error
    made = next(one.version for one in model.opset_import if one.domain == "")
    if made != opset:
        raise EngineError(
            "invalid_request",
            f"The network cannot be written in opset {opset} ({str(reason)[:200]}); opset {made} can hold it.",
            param="/onnx/opset",
        )
    return model


def _write(model: onnx.ModelProto, network: Network, path: Path, compare: bool) -> None:
    _require_one_file(sum(len(tensor.raw_data) for tensor in model.graph.initializer))
    data = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(data, full_check=True)
    path.write_bytes(data)
    if compare:
        _compare(network, path)
    final = with_interface(model, network)
    if final is not model:
        data = final.SerializeToString(deterministic=True)
        onnx.checker.check_model(data)
        if compare:
            compare_interface(data, network)
        path.write_bytes(data)


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


def _exported_by_torch(network: Network, opset: int) -> onnx.ModelProto:
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
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    _strip(model)
    return model


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
        errors = [relative_error(got, want.numpy()) for got, want in zip(results, expected, strict=True)]
        if max(errors) <= _TOLERANCE:
            continue
        for spec, error, rounding in zip(network.outputs, errors, _rounding_errors(network, inputs), strict=True):
            if not error <= max(_TOLERANCE, min(_ROUNDINGS * rounding, _LARGEST_ROUNDING)):
                raise EngineError(
                    "internal",
                    f"ONNX Runtime differs from PyTorch by {error:.1e} (relative) at output {spec.name!r} for batch "
                    f"{batch}, and float32 alone explains {rounding:.1e} of it; the file is not delivered.",
                )


def _rounding_errors(network: Network, inputs: Sequence[torch.Tensor]) -> list[float]:
    """Per output, what float32 costs in this network: PyTorch's own relative distance from float64."""
    exact = network.to(torch.float64).run(*(value.double() for value in inputs))
    return [
        relative_error(got.double().numpy(), want.double().numpy())
        for got, want in zip(network.run(*inputs), exact, strict=True)
    ]
