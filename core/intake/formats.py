"""Tells a file's format by its content, and names what is not read."""

from __future__ import annotations

import re

from core.intake.checkpoint import Container
from core.intake.refusals import invalid, unsupported

_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x8b", "gzip-compressed; upload the file inside"),
    (b"BZh", "bzip2-compressed; upload the file inside"),
    (b"\xfd7zXZ", "xz-compressed; upload the file inside"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; upload the file inside"),
    (b"\x89HDF", "an HDF5 file (Keras weights)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"PAR1", "a Parquet file (a dataset?)"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page; the download probably needed a login"),
    (b"<html", "a web page; the download probably needed a login"),
    (b"PK\x05\x06", "an empty zip"),
)
# ONNX: a protobuf whose first field is ir_version (a small number), followed by another top-level field of ModelProto.
_ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", re.DOTALL)
_TEXT_PICKLE = re.compile(rb"\(?[ci][\w.]+\n[\w.]+\n")


def sniff(data: memoryview) -> Container:
    """The container of a checkpoint. Raises EngineError: invalid_model when empty, unsupported_format otherwise."""
    head = bytes(data[:512])
    if not head:
        raise invalid("The file is empty; upload it again.")
    for magic, name in _REFUSED:
        if head.startswith(magic):
            raise unsupported(f"The file is {name}.")
    if head[257:262] == b"ustar":
        raise unsupported("The file is a tar archive (perhaps a checkpoint of PyTorch before 0.2), which is not read.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return "stream"
    if _TEXT_PICKLE.match(head):
        return "stream"
    if head[4:8] == b"TFL3":
        raise unsupported("The file is a TensorFlow Lite model.")
    if _ONNX.match(head):
        return "onnx"
    raise unsupported("The file is not a checkpoint: its first bytes belong to no known format.")
