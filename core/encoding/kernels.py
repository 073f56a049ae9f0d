"""Kernels: the weights that are worth sharing, and the groups of them that share one codebook.

A kernel is a stored tensor that a convolution or a matrix product multiplies by. Biases, batch-norms and everything else
are few and stay as they are. Pruned weights are exact zeros with an index of their own, and so are weights that were zero
before: quantisers see what survives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch.fx import Node

from core.analysis.schema import bind, is_aten, operator_name
from core.encoding.quantized import QuantizedTensor
from core.encoding.quantizers import Levels, SortedValues
from core.network import Network

Kind = Literal["conv", "dense"]
_OPERANDS: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    **{f"conv{rank}d": ("conv", ("weight",)) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": ("conv", ("weight",)) for rank in (1, 2, 3)},
    "linear": ("dense", ("weight",)),
    "addmm": ("dense", ("mat1", "mat2")),
    "mm": ("dense", ("self", "mat2")),
    "matmul": ("dense", ("self", "other")),
}


@dataclass(frozen=True, eq=False)
class Kernel:
    """One stored tensor. names: all that the network has for it. survivors: bool of its shape, what is not zero."""

    names: tuple[str, ...]
    kind: Kind
    values: np.ndarray
    survivors: np.ndarray

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def pruned(self) -> bool:
        return not self.survivors.all()


def find_kernels(network: Network, prune: float) -> list[Kernel]:
    """The kernels in the order of the graph. prune: percentage of each that becomes zero, the smallest magnitudes."""
    kinds: dict[str, Kind] = {}
    for node in network.graph.nodes:
        if node.op != "call_function" or not is_aten(node.target) or operator_name(node.target) not in _OPERANDS:
            continue
        kind, operands = _OPERANDS[operator_name(node.target)]
        call = bind(node)
        for operand in operands:
            source = call.get(operand)
            if isinstance(source, Node) and source.op == "get_attr":
                kinds.setdefault(source.target, kind)
    stored: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for name, tensor in network.tensors.items():
        if tensor.dtype == torch.float32 and tensor.ndim >= 2 and tensor.numel():
            stored.setdefault((tensor.data_ptr(), tuple(tensor.shape), tensor.stride()), []).append(name)
    shared = {name: tuple(names) for names in stored.values() for name in names}
    found: dict[tuple[str, ...], Kernel] = {}
    for name, kind in kinds.items():
        if name in shared and shared[name] not in found:
            values = network.tensors[name].detach().cpu().numpy()
            found[shared[name]] = Kernel(shared[name], kind, values, _survivors(values, prune))
    return list(found.values())


def _survivors(values: np.ndarray, prune: float) -> np.ndarray:
    """Of equal magnitudes only as many go as the percentage says, the first in memory order."""
    magnitudes = np.abs(values).reshape(-1)
    alive = magnitudes > 0
    if prune:
        count = int(prune / 100 * (magnitudes.size - 1)) + 1
        largest = np.partition(magnitudes, count - 1)[count - 1]
        ties = np.flatnonzero(magnitudes == largest)
        alive &= magnitudes >= largest
        alive[ties[: count - int((magnitudes < largest).sum())]] = False
    return alive.reshape(values.shape)


@dataclass(frozen=True, eq=False)
class Group:
    """Kernels that share one codebook."""

    kernels: tuple[Kernel, ...]

    @cached_property
    def values(self) -> SortedValues | None:
        """All that survives; None where nothing does."""
        survivors = [kernel.values[kernel.survivors] for kernel in self.kernels]
        return SortedValues.of(np.concatenate(survivors)) if any(map(len, survivors)) else None

    def quantized(self, levels: Levels | None, seed: int) -> dict[str, QuantizedTensor]:
        """Every kernel under each of its names, with one codebook: that of `levels`, and zero where any is pruned."""
        return self.placed(levels, self.indices(levels, seed))

    def indices(self, levels: Levels | None, seed: int) -> list[np.ndarray]:
        """Per kernel, which of the shared values each of its survivors gets, every weight by itself."""
        if levels is None:
            return [np.zeros(0, np.int32) for _ in self.kernels]
        generator = np.random.default_rng(seed)
        return [levels.indices(kernel.values[kernel.survivors], generator) for kernel in self.kernels]

    def placed(self, levels: Levels | None, chosen: Sequence[np.ndarray]) -> dict[str, QuantizedTensor]:
        """As `quantized`, where it is decided which of the shared values each survivor gets."""
        shared = np.zeros(0, np.float32) if levels is None else levels.codebook.astype(np.float32)
        pruned = any(kernel.pruned for kernel in self.kernels)
        # Neighbours in float64 may be one number in float32.
        codebook, places = np.unique(np.append(shared, np.float32(0)) if pruned else shared, return_inverse=True)
        zero = int(np.searchsorted(codebook, 0.0))
        has_zero = zero < len(codebook) and codebook[zero] == 0
        indices = []
        for kernel, decided in zip(self.kernels, chosen, strict=True):
            own = np.full(kernel.values.shape, zero, dtype=np.int64)
            if levels is not None:
                own[kernel.survivors] = places[decided]
            indices.append(own)
        return _renumbered(self.kernels, codebook, indices, zero if has_zero else None)


# Groups with the values that were chosen for them; None where nothing survives.
Choice = tuple[Group, "Levels | None"]


def _renumbered(
    kernels: Sequence[Kernel], codebook: np.ndarray, indices: Sequence[np.ndarray], zero: int | None
) -> dict[str, QuantizedTensor]:
    """Without the values that nobody uses, and in the smallest type that holds the indices."""
    used = np.zeros(len(codebook), dtype=bool)
    for own in indices:
        used[np.unique(own)] = True
    places = np.cumsum(used) - 1
    codebook = codebook[used]
    if zero is not None:
        zero = int(places[zero]) if used[zero] else None
    if zero is not None:
        codebook[zero] = 0.0
    kind = np.uint8 if len(codebook) <= 256 else np.uint16
    found = {}
    for kernel, own in zip(kernels, indices, strict=True):
        tensor = QuantizedTensor(places[own].astype(kind), codebook, zero)
        found.update(dict.fromkeys(kernel.names, tensor))
    return found


def grouped(kernels: Sequence[Kernel], *, unified: bool) -> list[Group]:
    """One group per kernel; unified, one for all convolutions and one for all matrices."""
    if not unified:
        return [Group((kernel,)) for kernel in kernels]
    kinds = (tuple(kernel for kernel in kernels if kernel.kind == kind) for kind in ("conv", "dense"))
    return [Group(members) for members in kinds if members]


def with_values(network: Network, tensors: Mapping[str, QuantizedTensor]) -> Network:
    """The network with these tensors in place of its own; names that shared one tensor share one again."""
    made: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        made.setdefault(id(tensor), torch.from_numpy(np.ascontiguousarray(tensor.values(), dtype=np.float32)))
    return network.with_tensors(
        {name: made[id(tensors[name])] if name in tensors else old for name, old in network.tensors.items()}
    )


@dataclass(frozen=True, eq=False)
class Shared:
    """A network whose kernels hold shared values, and those kernels as indices and codebooks, by every name."""

    network: Network
    tensors: Mapping[str, QuantizedTensor]

    @staticmethod
    def of(network: Network, tensors: Mapping[str, QuantizedTensor]) -> Shared:
        """network: whose other tensors are taken as they are."""
        return Shared(with_values(network, tensors), tensors)
