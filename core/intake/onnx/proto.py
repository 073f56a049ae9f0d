"""The ONNX container: a `ModelProto`, and tensors from its `TensorProto`s.

protobuf only parses; every tensor is decoded here, after its claimed shape has been held against the bytes that are
there. Half-precision graphs are widened to float32 first, so that the file and the network compute in the same type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto
from torch import Tensor

from core.intake.refusals import damaged, invalid, too_large

MAX_DIMENSIONS = 16
MAX_NODES = 100_000
_LARGEST_FILE_BYTES = 2**31 - 1

_NUMPY = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.INT8: np.int8,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT32: np.uint32,
    TensorProto.BOOL: np.bool_,
}
_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
}
_HALVES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
TORCH_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def parse(data: memoryview) -> tuple[onnx.ModelProto, str]:
    """The message in `data`, half precision widened, and the element type that it had. Raises EngineError: invalid_model,
    too_large.
    """
    if len(data) > _LARGEST_FILE_BYTES:
        raise too_large(f"The ONNX file has {len(data)} bytes; one protobuf message holds {_LARGEST_FILE_BYTES}.")
    try:
        model = onnx.ModelProto.FromString(bytes(data))
    except DecodeError as error:
        raise damaged("The file begins like an ONNX model and does not parse as one.") from error
    if not model.HasField("graph") or not model.graph.node:
        raise invalid("The ONNX file has no graph; export the network again.")
    if len(model.graph.node) > MAX_NODES:
        raise invalid(f"The ONNX graph has {len(model.graph.node)} nodes; at most {MAX_NODES} are read.")
    return model, _widen(model)


def tensor(proto: TensorProto, what: str) -> Tensor:
    """A copy of the proto's values. Raises EngineError("invalid_model") where shape, type and data disagree."""
    shape = tuple(proto.dims)
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise invalid(f"{what} of the ONNX file has an impossible shape {list(shape)[:8]}.")
    dtype = _NUMPY.get(proto.data_type)
    if dtype is None:
        raise invalid(f"{what} of the ONNX file has element type {type_name(proto.data_type)}, which is not read.")
    count = math.prod(shape)
    if proto.HasField("raw_data"):
        present = len(proto.raw_data) / np.dtype(dtype).itemsize
        values = proto.raw_data
    else:
        values = getattr(proto, _FIELDS.get(proto.data_type, "int32_data"))
        present = len(values)
    if present != count:
        raise invalid(f"{what} of the ONNX file has shape {list(shape)} and {present:g} values.")
    array = np.frombuffer(values, np.dtype(dtype).newbyteorder("<")) if isinstance(values, bytes) else np.array(values)
    array = array.astype(np.int64 if dtype in (np.uint16, np.uint32) else dtype).reshape(shape)
    return torch.from_numpy(np.array(array, order="C", copy=True))


def type_name(data_type: int) -> str:
    return TensorProto.DataType.Name(data_type) if data_type in TensorProto.DataType.values() else str(data_type)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _widen(model: onnx.ModelProto) -> str:
    """The element type of its inputs and weights before."""
    graph = model.graph
    tensors = [item.type.tensor_type.elem_type for item in graph.input] + [one.data_type for one in graph.initializer]
    halves = [_HALVES[one] for one in tensors if one in _HALVES]
    for item in (*graph.input, *graph.output, *graph.value_info):
        if item.type.tensor_type.elem_type in _HALVES:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
    for proto in graph.initializer:
        _widen_tensor(proto)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT
    return halves[0] if halves else "float32"


def _widen_tensor(proto: TensorProto) -> None:
    if proto.data_type not in _HALVES:
        return
    if proto.HasField("raw_data"):
        bits = np.frombuffer(proto.raw_data[: len(proto.raw_data) // 2 * 2], "<u2")
    else:
        bits = np.array([value & 0xFFFF for value in proto.int32_data], np.uint16)
    if proto.data_type == TensorProto.FLOAT16:
        values = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    proto.ClearField("int32_data")
    proto.raw_data = values.astype("<f4").tobytes()
    proto.data_type = TensorProto.FLOAT
