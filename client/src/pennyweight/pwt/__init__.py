"""Read `.pwt` files: compact coded weights → numpy arrays, safetensors, ONNX. Needs numpy and nothing else.

    from pennyweight import pwt

    weights = pwt.load("model.pwt")                   # name → array
    with pwt.open("model.pwt") as file:               # random access
        file.names, file.about
        file["classifier.weight"]                     # one tensor
        file.columns("classifier.weight", 100, 200)   # outputs 100 to 199 of one tensor

The file is specified in docs/pwt.md. Whatever is wrong with one raises `PwtError`, whose `code` is one of `PwtFault`.
"""

from pathlib import Path

import numpy as np

from .faults import PwtError, PwtFault
from .file import MAX_DECODED_BYTES, PwtFile

__all__ = ["MAX_DECODED_BYTES", "PwtError", "PwtFault", "PwtFile", "load", "open"]


def open(path: str | Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> PwtFile:
    """A file for random access: its header is read and checked, its tensors when they are asked for."""
    return PwtFile(path, max_decoded_bytes)


def load(path: str | Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> dict[str, np.ndarray]:
    """Every tensor of a file by name, in the file's order."""
    with PwtFile(path, max_decoded_bytes) as file:
        return {name: file[name] for name in file.names}
