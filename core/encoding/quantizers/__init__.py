"""Quantisers: the values of a tensor replaced by few shared ones.

    values ── sort ── quantiser ── Levels (codebook, cells) ── indices

Marinò, Ghidoli, Frasca, Malchiodi, "Reproducing the sparse Huffman address map compression for deep neural networks" and
"Compact representations of convolutional neural networks via weight pruning and quantization", 2020-2021: clustering
(CWS), probabilistic (PWS), uniform (UQ) and entropy-constrained (ECSQ) weight sharing. Quantisers see a sorted list of
numbers and nothing else, so one layer or all layers of a kind together are the same to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from core.encoding.quantizers.clustering import Clustering
from core.encoding.quantizers.entropy_constrained import EntropyConstrained
from core.encoding.quantizers.levels import CURVE_LEVELS, MOST_LEVELS, Levels
from core.encoding.quantizers.probabilistic import Probabilistic
from core.encoding.quantizers.sorted_values import SortedValues
from core.encoding.quantizers.uniform import Uniform


class Quantizer(Protocol):
    """What is known of one list of values once a quantiser has seen it."""

    def at_levels(self, levels: int) -> Levels:
        """At most `levels` shared values."""
        ...

    def curve(self) -> list[Levels]:
        """Several ways to quantise, from few bits to many."""
        ...


_QUANTIZERS = {"cws": Clustering, "pws": Probabilistic, "uq": Uniform, "ecsq": EntropyConstrained}
QUANTIZERS: Mapping[str, type] = _QUANTIZERS


def quantizer(name: str, values: SortedValues, most_levels: int) -> Quantizer:
    """The quantiser `name` for these values, which must not be empty, with at most `most_levels` shared values."""
    return QUANTIZERS[name](values, most_levels)


__all__ = ["CURVE_LEVELS", "MOST_LEVELS", "QUANTIZERS", "Levels", "Quantizer", "SortedValues", "quantizer"]
