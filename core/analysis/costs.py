"""The analytic cost model: every cost is a sum of products of widths, so planning never runs the network.

With `widths[g]` components kept in group g, the length of every labelled axis is affine in the widths,

    counts = fixed + slope @ widths            one entry per distinct label vector, and a last entry that is always 1

each cost row is a product of such lengths (a weight's elements, a layer's multiply-accumulates, a buffer's elements),

    products = counts[factors].prod(axis=1)

and params, MACs, weight bytes and the live bytes of every execution step are linear in the products. All numbers are
integers far below 2**53, where float64 arithmetic is exact.
"""

from __future__ import annotations

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


def build_cost_table(
    fixed: np.ndarray,
    slope: np.ndarray,
    params: Sequence[Product],
    macs: Sequence[Product],
    weight_bytes: Sequence[Product],
    steps: Sequence[Sequence[Product]],
) -> CostTable:
    """Merge equal products, drop steps that can never be the peak, and lay everything out densely.

    fixed [vectors] and slope [vectors, groups] without the constant entry, which is added here.
    """
    index: dict[tuple[int, ...], int] = {}

    def linear(products: Sequence[Product]) -> dict[int, float]:
        row: dict[int, float] = {}
        for product in products:
            column = index.setdefault(product.vectors, len(index))
            row[column] = row.get(column, 0.0) + product.constant
        return row

    sums = [linear(params), linear(macs), linear(weight_bytes)]
    peaks = [linear(step) for step in steps]
    width = max(1, len(index))
    totals = np.zeros((3, width))
    for target, row in zip(totals, sums, strict=True):
        target[list(row)] = list(row.values())
    dense_steps = np.zeros((len(peaks), width))
    for target, row in zip(dense_steps, peaks, strict=True):
        target[list(row)] = list(row.values())
    one = len(fixed)
    longest = max((len(vectors) for vectors in index), default=1) or 1
    factors = np.full((width, longest), one, dtype=np.int64)
    for vectors, column in index.items():
        factors[column, : len(vectors)] = vectors
    table = CostTable(
        fixed=np.append(fixed.astype(np.float64), 1.0),
        slope=np.vstack([slope.astype(np.float64), np.zeros((1, slope.shape[1]))]),
        factors=factors,
        totals=np.vstack([totals, _undominated(dense_steps)]),
    )
    return table


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
    steps = np.unique(steps, axis=0)
    order = np.argsort(-steps.sum(axis=1), kind="stable")
    kept: list[np.ndarray] = []
    for row in steps[order]:
        if not kept or not (np.stack(kept) >= row).all(axis=1).any():
            kept.append(row)
    return np.stack(kept)
