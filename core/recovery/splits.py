"""Seeded completion of splits: a missing val is 10 % of train, a missing test another 10 %, stratified by label."""

from __future__ import annotations

import numpy as np

from core.recovery.chunks import SPLIT_NAMES, TEST, TRAIN, VAL, invalid_dataset

DRAWN_SHARE = 0.1
MIN_EXAMPLES = 10


def complete_splits(codes: np.ndarray, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """[n] split codes in which train, val and test each have examples; no example is in two of them.

    codes: [n] as stored. labels: [n] int64, or None. Raises EngineError("dataset_invalid") without a train split or with
    fewer than MIN_EXAMPLES examples in it.
    """
    codes = codes.copy()
    train = np.flatnonzero(codes == TRAIN)
    if len(train) < MIN_EXAMPLES:
        present = {name: int((codes == code).sum()) for code, name in enumerate(SPLIT_NAMES)}
        raise invalid_dataset(
            f"The train split has {len(train)} examples; at least {MIN_EXAMPLES} are needed. Splits found: {present}."
        )
    count = max(1, round(DRAWN_SHARE * len(train)))
    for code in (VAL, TEST):
        if not (codes == code).any():
            rest = np.flatnonzero(codes == TRAIN)
            strata = labels[rest] if labels is not None else np.zeros(len(rest), np.int64)
            codes[rest[_stratified_draw(strata, count, np.random.default_rng([seed, code]))]] = code
    return codes


def _stratified_draw(strata: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` positions, each stratum in proportion to its size (largest remainders), at random within it."""
    names, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    exact = count * sizes / len(strata)
    quotas = np.floor(exact).astype(np.int64)
    largest = np.argsort(quotas - exact, kind="stable")
    quotas[largest[: count - quotas.sum()]] += 1
    order = generator.permutation(len(strata))
    drawn = [order[stratum[order] == index][: quotas[index]] for index in range(len(names))]
    return np.concatenate(drawn)
