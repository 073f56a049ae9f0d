"""What NVIDIA Triton Inference Server needs to serve an ONNX file: a folder for the model, its version, its config.

NAME/config.pbtxt
NAME/1/model.onnx
"""

from __future__ import annotations

import re

from api.onnx_signature import Signature, TensorSignature

MAX_BATCH_SIZE = 64
"""How many requests Triton may put into one batch, where the network takes any number."""

_TYPES = {
    1: "TYPE_FP32",
    2: "TYPE_UINT8",
    3: "TYPE_INT8",
    4: "TYPE_UINT16",
    5: "TYPE_INT16",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    8: "TYPE_STRING",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    11: "TYPE_FP64",
    12: "TYPE_UINT32",
    13: "TYPE_UINT64",
    16: "TYPE_BF16",
}


def model_name(name: str) -> str:
    """A name for the model's folder: Triton's clients put it into URLs."""
    return re.sub(r"[^A-Za-z0-9_.\-]+", "_", name).strip("_.-")[:100] or "model"


def config(name: str, signature: Signature) -> str:
    """The text of config.pbtxt. Raises ValueError for an element type that Triton does not have."""
    tensors = (*signature.inputs, *signature.outputs)
    # Triton adds the batch dimension by itself, but only where every tensor leads with a free one.
    batched = all(tensor.shape and tensor.shape[0] is None for tensor in tensors)
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH_SIZE if batched else 0}",
    ]
    for kind, group in (("input", signature.inputs), ("output", signature.outputs)):
        lines += [f"{kind} [", ",\n".join(_tensor(tensor, batched) for tensor in group), "]"]
    if batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensor(tensor: TensorSignature, batched: bool) -> str:
    if tensor.element_type not in _TYPES:
        raise ValueError(f"{tensor.name!r} has the ONNX element type {tensor.element_type}, which Triton does not have")
    shape = tensor.shape[1:] if batched else tensor.shape
    dims = ", ".join("-1" if size is None else str(size) for size in shape)
    return f"  {{\n    name: {_quoted(tensor.name)}\n    data_type: {_TYPES[tensor.element_type]}\n    dims: [ {dims} ]\n  }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format: bytes that are not plain ASCII as octal escapes."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'
