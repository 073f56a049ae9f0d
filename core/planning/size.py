"""Size: how many bytes a network takes as `model.safetensors`, known before anything is written.

    8 bytes · header, JSON padded to a multiple of 8 bytes · the tensors

The header holds every shape and byte range in decimal digits, so its length depends on the widths; a plan knows them.
Names that share a tensor are written once each, integer tensors as they are, and a network that was cut says so
(`PRUNED_MARK`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.analysis import ChannelAnalysis
from core.intake.safetensors_file import PRUNED_MARK
from core.network import Network

# The library writes tensors of the last types first, and those of one type by name.
_ORDER = [
    "BOOL",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "C64",
    "F64",
    "I64",
    "U64",
]
_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
}
_LENGTH_FIELD_BYTES = 8
_ALIGNMENT = 8
_POWERS_OF_TEN = 10 ** np.arange(1, 19)


@dataclass(frozen=True, eq=False)
class SizeTable:
    """Bytes of the file as a function of the widths.

    fixed [axes], slope [axes, groups]: length of every axis of every tensor, in the order of the file; starts [tensors]:
    where a tensor's axes begin (tensors without axes have one of length 1). text: bytes of the header that do not change.
    """

    fixed: np.ndarray
    slope: np.ndarray
    starts: np.ndarray
    itemsizes: np.ndarray
    scalar: np.ndarray
    text: int
    full_widths: np.ndarray

    @staticmethod
    def of(network: Network, analysis: ChannelAnalysis) -> SizeTable:
        """For `network` cut by `analysis`, which must be its own."""
        labelled = {(one.tensor, one.axis): one.component for one in analysis.slices}
        groups = len(analysis.groups)
        group_of = np.full(analysis.components, groups, dtype=np.int64)
        for group in analysis.groups:
            group_of[group.components] = group.index
        tensors = _in_file_order(network.tensors)
        fixed, slope = [], []
        for name, tensor in tensors.items():
            for axis, length in enumerate(tensor.shape or (1,)):
                row = np.zeros(groups, dtype=np.int64)
                if (name, axis) in labelled:
                    row = _channels_per_component(labelled[name, axis], group_of, analysis)
                slope.append(row)
                fixed.append(length - int(row @ analysis.full_widths))
        ranks = [max(1, tensor.ndim) for tensor in tensors.values()]
        return SizeTable(
            fixed=np.array(fixed, dtype=np.int64),
            slope=np.array(slope, dtype=np.int64).reshape(len(fixed), groups),
            starts=np.cumsum([0, *ranks[:-1]]),
            itemsizes=np.array([tensor.itemsize for tensor in tensors.values()], dtype=np.int64),
            scalar=np.repeat([tensor.ndim == 0 for tensor in tensors.values()], ranks),
            text=_constant_text_bytes(tensors),
            full_widths=analysis.full_widths,
        )

    def evaluate(self, widths: np.ndarray) -> int:
        """Bytes of the file when group g keeps widths[g] of its components."""
        lengths = self.fixed + self.slope @ widths
        ends = np.cumsum(np.multiply.reduceat(lengths, self.starts) * self.itemsizes)
        digits = _digits(lengths[~self.scalar]).sum() + _digits(ends).sum() + _digits(ends[:-1]).sum() + 1
        header = self.text + int(digits)
        if (widths < self.full_widths).any():
            header += len(_mark_text())
        return _LENGTH_FIELD_BYTES + -(-header // _ALIGNMENT) * _ALIGNMENT + int(ends[-1])


def safetensors_bytes(network: Network, *, pruned: bool = False) -> int:
    """Bytes of `network` as a safetensors file. pruned: with the mark of a network that is no longer what came."""
    tensors = _in_file_order(network.tensors)
    ends = np.cumsum([tensor.numel() * tensor.itemsize for tensor in tensors.values()])
    lengths = np.array([size for tensor in tensors.values() for size in tensor.shape], dtype=np.int64)
    digits = _digits(lengths).sum() + _digits(ends).sum() + _digits(ends[:-1]).sum() + 1
    header = _constant_text_bytes(tensors) + int(digits) + pruned * len(_mark_text())
    return _LENGTH_FIELD_BYTES + -(-header // _ALIGNMENT) * _ALIGNMENT + int(ends[-1])


def _channels_per_component(components: np.ndarray, group_of: np.ndarray, analysis: ChannelAnalysis) -> np.ndarray:
    """int64 per group: positions of an axis that each of the group's components takes.

    Zero where they take different numbers (a stored table of positions may): then the axis is counted whole, which is
    never too little.
    """
    groups = len(analysis.groups)
    each = np.bincount(components[components >= 0], minlength=analysis.components)
    total = np.bincount(group_of, weights=each, minlength=groups + 1)[:groups].astype(np.int64)
    row = total // np.maximum(analysis.full_widths, 1)
    unequal = np.append(row, 0)[group_of] != each
    row[group_of[unequal & (group_of < groups)]] = 0
    return row


def _in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(tensors.items(), key=lambda item: (-_ORDER.index(_TYPES[item[1].dtype]), item[0])))


def _constant_text_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the header without the digits of shapes and byte ranges."""
    entries = []
    for name, tensor in tensors.items():
        commas = "," * max(0, tensor.ndim - 1)
        quoted = json.dumps(name, ensure_ascii=False)
        entries.append(f'{quoted}:{{"dtype":"{_TYPES[tensor.dtype]}","shape":[{commas}],"data_offsets":[,]}}')
    return len(("{" + ",".join(entries) + "}").encode())


def _mark_text() -> str:
    return f'"__metadata__":{json.dumps(PRUNED_MARK, separators=(",", ":"))},'


def _digits(numbers: np.ndarray) -> np.ndarray:
    """How many decimal digits each number has."""
    return 1 + np.searchsorted(_POWERS_OF_TEN, numbers, side="right")
