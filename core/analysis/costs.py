"""The analytic cost model: every cost is a sum of products of widths, so planning never runs the network.

With `widths[g]` components kept in group g, the length of every labelled axis is affine in the widths,

    counts = fixed + slope @ widths            one entry per distinct label vector, and a last entry that is always 1

each cost row is a product of such lengths (a weight's elements, a layer's multiply-accumulates, a buffer's elements),

    products = counts[factors].prod(axis=1)

and params, MACs, weight bytes and the live bytes of every execution step are linear in the products. All numbers are
integers far below 2**53, where float64 arithmetic is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.budget import Costs

_EXACT_LIMIT = 2.0**53


@dataclass(frozen=True, eq=False)
class CostTable:
    """fixed [vectors+1], slope [vectors+1, groups], factors [products, k] into counts, totals [3 + steps, products].

    Rows of `totals`: params, MACs, weight bytes, then the live activation bytes of every step that can be the peak.
    """

    fixed: np.ndarray
    slope: np.ndarray
    factors: np.ndarray
    totals: np.ndarray

    def evaluate(self, widths: np.ndarray) -> Costs:
        """Exact costs when group g keeps widths[g] of its components."""
        counts = self.fixed + self.slope @ widths
        products = counts[self.factors].prod(axis=1)
        totals = self.totals @ products
        peak = totals[3:].max() if len(totals) > 3 else 0
        return Costs(int(totals[0]), int(totals[1]), int(totals[2]), int(peak))


@dataclass(frozen=True)
class Product:
    """constant × Π counts[vector] over `vectors` (ids of distinct label vectors, sorted)."""

    constant: int
    vectors: tuple[int, ...]


@dataclass(frozen=True)
class LiveProduct:
    """A buffer's bytes, live in the execution steps birth … death, both included."""

    product: Product
    birth: int
    death: int


def build_cost_table(
    fixed: np.ndarray,
    slope: np.ndarray,
    params: Sequence[Product],
    macs: Sequence[Product],
    weight_bytes: Sequence[Product],
    buffers: Sequence[LiveProduct],
) -> CostTable:
    """Merge equal products, drop steps that can never be the peak, and lay everything out densely.

    fixed [vectors] and slope [vectors, groups] without the constant entry, which is added here.
    """
    index: dict[tuple[int, ...], int] = {}
    sums = (params, macs, weight_bytes)
    for product in (*itertools.chain(*sums), *(buffer.product for buffer in buffers)):
        index.setdefault(product.vectors, len(index))
    width = max(1, len(index))
    totals = np.zeros((3, width))
    for target, products in zip(totals, sums, strict=True):
        for product in products:
            target[index[product.vectors]] += product.constant
    one = len(fixed)
    longest = max((len(vectors) for vectors in index), default=1) or 1
    factors = np.full((width, longest), one, dtype=np.int64)
    for vectors, column in index.items():
        factors[column, : len(vectors)] = vectors
    return CostTable(
        fixed=np.append(fixed.astype(np.float64), 1.0),
        slope=np.vstack([slope.astype(np.float64), np.zeros((1, slope.shape[1]))]),
        factors=factors,
        totals=np.vstack([totals, _undominated(_live(buffers, index, width))]),
    )


def _live(buffers: Sequence[LiveProduct], index: dict[tuple[int, ...], int], width: int) -> np.ndarray:
    """float64 [steps, products]: live bytes per product at every step that can be the peak.

    The peak is at a step where something has come and something is about to go: any other has a neighbour with the
    same buffers and more.
    """
    if not buffers:
        return np.zeros((0, width))
    last = max(buffer.death for buffer in buffers)
    change = np.zeros((last + 2, width))
    for buffer in buffers:
        column = index[buffer.product.vectors]
        change[buffer.birth, column] += buffer.product.constant
        change[buffer.death + 1, column] -= buffer.product.constant
    steps = {buffer.birth for buffer in buffers}, {buffer.death for buffer in buffers}
    coming, going = (np.array(sorted(found)) for found in steps)
    # Of the steps from one departure to the next, the last that brings something: nothing is gone by then.
    peaks = coming[np.unique(np.searchsorted(coming, going, side="right") - 1)]
    return change.cumsum(axis=0)[peaks]


def assert_exact(table: CostTable, full_widths: np.ndarray) -> None:
    """Costs only fall with the widths, so the full widths bound every sum."""
    costs = table.evaluate(full_widths)
    largest = max(costs.params, costs.macs, costs.weight_bytes, costs.peak_activation_bytes)
    if largest >= _EXACT_LIMIT:
        raise OverflowError(f"cost {largest} is beyond exact float64 integers")


def _undominated(steps: np.ndarray) -> np.ndarray:
    """Rows that no other row exceeds everywhere: products are never negative, so only these can be the maximum."""
    if not len(steps):
        return steps
    order = np.argsort(-steps.sum(axis=1), kind="stable")
    kept = np.empty_like(steps)
    count = 0
    for row in steps[order]:
        if not (kept[:count] >= row).all(axis=1).any():
            kept[count] = row
            count += 1
    return kept[:count]
