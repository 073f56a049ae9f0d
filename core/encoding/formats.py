"""The codings of a tensor by name: `encode`, `decode`, `encoded_bytes`, and the smallest by measured size.

A payload is the codebook (k float32) and then the coding's body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.encoding import ans, csc, hac, im, shac
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


def _of_indices(
    decoder: Callable[[memoryview, Layout], ColumnDecoder],
) -> Callable[[memoryview, Layout, np.ndarray], ColumnDecoder]:
    """A decoder of indices, which need no values."""
    return lambda body, layout, codebook: decoder(body, layout)


FORMATS: Mapping[str, _Format] = {
    "ans": _Format(ans.encode_body, lambda tensor: 8 * len(ans.encode_body(tensor)), _of_indices(ans.Decoder)),
    "csc": _Format(csc.encode, csc.size_bits, csc.Decoder),
    "hac": _Format(hac.encode, hac.size_bits, _of_indices(hac.Decoder)),
    "im": _Format(im.encode, im.size_bits, _of_indices(im.Decoder)),
    "shac": _Format(shac.encode, shac.size_bits, _of_indices(shac.Decoder)),
}


def encode(tensor: QuantizedTensor, format: str = AUTO) -> tuple[bytes, str]:
    """The payload and the name of its format; `auto` takes the smallest, the first by name among equals."""
    check(tensor)
    codebook = tensor.codebook.astype("<f4").tobytes()
    if format != AUTO:
        return codebook + _named(format).encode(tensor), format
    sizes = {name: FORMATS[name].size_bits(tensor) for name in FORMATS if name != "ans"}
    best = min(sorted(sizes), key=sizes.__getitem__)
    if ans.encodable(tensor):
        body = ans.encode_body(tensor)
        if 8 * len(body) <= sizes[best]:
            return codebook + body, "ans"
    return codebook + FORMATS[best].encode(tensor), best


def encoded_bytes(tensor: QuantizedTensor, format: str = AUTO) -> int:
    """The bytes that `encode` makes, its codebook counted in. All but `ans` count them without coding."""
    if format == AUTO:
        return len(encode(tensor)[0])
    check(tensor)
    return 4 * len(tensor.codebook) + _named(format).size_bits(tensor) // 8


def decode(payload: bytes | memoryview, format: str, layout: Layout, threads: int = 1) -> QuantizedTensor:
    """The tensor again, bit for bit; its indices in the narrowest unsigned type. threads: that share the blocks of `ans`."""
    codebook, decoder = open_payload(payload, format, layout)
    share = {"threads": threads} if format == "ans" else {}
    return QuantizedTensor(decoder.columns(0, layout.columns, **share).reshape(layout.shape), codebook, layout.zero)


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
