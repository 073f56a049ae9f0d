"""The codings of a tensor by name: `encode`, `decode`, `encoded_bytes`, and the smallest by measured size.

A payload is the codebook (k float32) and then the coding's body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.encoding import csc, im
from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import Layout
from core.encoding.quantized import QuantizedTensor

AUTO = "auto"
RAW = "raw"
MAX_LEVELS = 1 << 16


class EncodingError(ValueError):
    """A tensor that cannot be coded as asked."""


class ColumnDecoder(Protocol):
    """Random access to the columns of one body."""

    def columns(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class _Format:
    encode: Callable[[QuantizedTensor], bytes]
    size_bits: Callable[[QuantizedTensor], int]  # exact, without the codebook
    decoder: Callable[[memoryview, Layout, np.ndarray], ColumnDecoder]


FORMATS: Mapping[str, _Format] = {
    "csc": _Format(csc.encode, csc.size_bits, csc.Decoder),
    "im": _Format(im.encode, im.size_bits, lambda body, layout, codebook: im.Decoder(body, layout)),
}


def encode(tensor: QuantizedTensor, format: str = AUTO) -> tuple[bytes, str]:
    """The payload and the name of its format; `auto` takes the smallest."""
    check(tensor)
    if format == AUTO:
        format = smallest(tensor)
    return codebook_bytes(tensor) + _named(format).encode(tensor), format


def encoded_bytes(tensor: QuantizedTensor, format: str = AUTO) -> int:
    """The bytes that `encode` makes, its codebook counted in."""
    check(tensor)
    if format == AUTO:
        format = smallest(tensor)
    return 4 * len(tensor.codebook) + _named(format).size_bits(tensor) // 8


def smallest(tensor: QuantizedTensor) -> str:
    """The format of the fewest bytes; the first by name among equals."""
    return min(sorted(FORMATS), key=lambda name: FORMATS[name].size_bits(tensor))


def decode(payload: bytes | memoryview, format: str, layout: Layout) -> QuantizedTensor:
    """The tensor again, bit for bit; its indices in the narrowest unsigned type."""
    codebook, decoder = open_payload(payload, format, layout)
    return QuantizedTensor(decoder.columns(0, layout.columns).reshape(layout.shape), codebook, layout.zero)


def open_payload(payload: bytes | memoryview, format: str, layout: Layout) -> tuple[np.ndarray, ColumnDecoder]:
    """The codebook, and access to columns."""
    payload = memoryview(payload)
    if len(payload) < 4 * layout.levels:
        raise PwtError(PwtFault.bad_extent, format, f"{len(payload)} bytes cannot hold {layout.levels} levels")
    codebook = np.frombuffer(payload[: 4 * layout.levels], "<f4").astype(np.float32)
    fault = codebook_fault(codebook, layout.zero)
    if fault:
        raise PwtError(PwtFault.bad_codebook, format, fault)
    return codebook, _named(format).decoder(payload[4 * layout.levels :], layout, codebook)


def codebook_bytes(tensor: QuantizedTensor) -> bytes:
    return tensor.codebook.astype("<f4").tobytes()


def codebook_fault(codebook: np.ndarray, zero: int | None) -> str | None:
    """What breaks the rules of a codebook: finite, strictly increasing but for the reserved zero, whose value is 0."""
    if not 1 <= len(codebook) <= MAX_LEVELS:
        return f"{len(codebook)} levels; from 1 to {MAX_LEVELS} can be coded"
    if not np.isfinite(codebook).all():
        return "a level is not finite"
    if zero is not None and not (0 <= zero < len(codebook) and codebook[zero] == 0):
        return f"the reserved index {zero} has no level of value 0"
    others = codebook if zero is None else np.delete(codebook, zero)
    return None if (np.diff(others) > 0).all() else "the levels are not strictly increasing"


def check(tensor: QuantizedTensor) -> None:
    """Raises EncodingError where a tensor breaks the rules of `QuantizedTensor`."""
    fault = codebook_fault(tensor.codebook, tensor.zero)
    if fault is None and tensor.codebook.dtype != np.float32:
        fault = f"the codebook is {tensor.codebook.dtype}; it must be float32"
    if fault is None and not np.issubdtype(tensor.indices.dtype, np.integer):
        fault = f"the indices are {tensor.indices.dtype}; they must be integers"
    if (
        fault is None
        and tensor.indices.size
        and not 0 <= int(tensor.indices.min()) <= int(tensor.indices.max()) < len(tensor.codebook)
    ):
        fault = f"an index is outside the {len(tensor.codebook)} levels"
    if fault:
        raise EncodingError(fault)


def _named(format: str) -> _Format:
    if format not in FORMATS:
        raise EncodingError(f"no format {format!r}; there are {', '.join(sorted(FORMATS))} and {AUTO}")
    return FORMATS[format]
