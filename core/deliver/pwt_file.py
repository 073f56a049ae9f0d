"""`model.pwt` of a network: its tensors, the shared ones as indices, with what a reader needs to make ONNX of it again.

The skeleton is the ONNX file without the data of every initialiser that a tensor of the same name fills bit for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from core.deliver.onnx_file import onnx_bytes
from core.encoding.container import PwtSummary, read_pwt, write_pwt
from core.encoding.errors import PwtError
from core.encoding.formats import EncodingError
from core.encoding.quantized import QuantizedTensor
from core.errors import EngineError
from core.network import Network
from core.version import VERSION


@dataclass(frozen=True)
class Compact:
    """How a network is stored. tensors: by name, what shares values. skeleton: as above; None without ONNX."""

    tensors: Mapping[str, QuantizedTensor]
    skeleton: bytes | None = None
    format: str = "auto"


def skeleton_of(network: Network, opset: int | None = None) -> bytes | None:
    """It belongs to these very values: what the ONNX file holds that was computed from them stays in it."""
    try:
        proto = onnx.load_from_string(onnx_bytes(network, fold=False, opset=opset))
    except EngineError:
        return None
    for initializer in proto.graph.initializer:
        if _is_stored(initializer, network):
            initializer.ClearField("raw_data")
    return proto.SerializeToString(deterministic=True)


def _is_stored(initializer: onnx.TensorProto, network: Network) -> bool:
    """Whether the network has a tensor of the same name, shape and bytes."""
    value = network.tensors.get(initializer.name)
    if value is None or list(value.shape) != list(initializer.dims):
        return False
    return value.detach().cpu().contiguous().numpy().tobytes() == initializer.raw_data


def deliver_pwt(network: Network, compact: Compact, path: Path) -> PwtSummary:
    """Write the file and read it back. Raises EngineError: "invalid_request" where the format cannot be had, "internal"
    where not every tensor comes out of it bit for bit."""
    summary = write_network_pwt(network, compact, path)
    try:
        found, _ = read_pwt(path, threads=torch.get_num_threads())
    except PwtError as error:
        raise EngineError("internal", f"model.pwt was written, and cannot be read again: {error}.") from error
    for name, tensor in network.tensors.items():
        read = found[name].values() if isinstance(found[name], QuantizedTensor) else found[name]
        written = tensor.detach().cpu().contiguous().numpy()
        if (read.shape, read.dtype) != (written.shape, written.dtype) or read.tobytes() != written.tobytes():
            raise EngineError(
                "internal", f"model.pwt gives the tensor {name!r} back with other values than were written."
            )
    return summary


def write_network_pwt(network: Network, compact: Compact, path: Path) -> PwtSummary:
    """Raises EngineError("invalid_request") where the format cannot be had."""
    stored: dict[str, QuantizedTensor | np.ndarray] = {
        name: compact.tensors[name] if name in compact.tensors else tensor.detach().cpu().contiguous().numpy()
        for name, tensor in network.tensors.items()
    }
    about = {
        "producer": f"pennyweight {VERSION}",
        "architecture": network.architecture,
        "architecture_args": dict(network.architecture_args),
        "inputs": {spec.name: list(spec.shape) for spec in network.inputs},
        "outputs": {spec.name: list(spec.shape) for spec in network.outputs},
    }
    try:
        return write_pwt(path, stored, about, compact.format, compact.skeleton)
    except EncodingError as error:
        raise EngineError(
            "invalid_request", f"model.pwt cannot be written: {error}.", param="/encoding/format"
        ) from error


def measured_pwt(network: Network, compact: Compact) -> PwtSummary:
    """What the file would take."""
    with tempfile.TemporaryDirectory() as scratch:
        return write_network_pwt(network, compact, Path(scratch) / "model.pwt")
