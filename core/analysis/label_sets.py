"""Sets of labels that are tied together, grown while a network is interpreted (union-find on whole vectors).

Every label points to a smaller one of its set, or to itself: the root, the smallest of the set. A batch of ties joins the
sets of the roots that it mentions, and a look-up shortens the paths that it walks, so that all work together is linear
in the ties but for a logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class LabelSets:
    """Disjoint sets of the labels 0, 1, 2, …, each alone at first."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """The smallest member of each label's set."""
        if labels.size:
            self._grow(int(labels.max()) + 1)
        found = self._parent[labels]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[labels] = found
        return found

    def join(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Position i of both vectors of a pair comes into one set."""
        if not pairs:
            return
        first = self.roots(np.concatenate([pair[0] for pair in pairs]))
        second = self.roots(np.concatenate([pair[1] for pair in pairs]))
        apart = first != second
        if not apart.any():
            return
        members, place = np.unique(np.concatenate([first[apart], second[apart]]), return_inverse=True)
        left, right = place[: apart.sum()], place[apart.sum() :]
        links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(len(members), len(members)))
        count, of = connected_components(links, directed=False)
        smallest = np.zeros(count, dtype=np.int64)
        smallest[of[::-1]] = members[::-1]
        self._parent[members] = smallest[of]

    def _grow(self, count: int) -> None:
        have = len(self._parent)
        if count > have:
            self._parent = np.concatenate([self._parent, np.arange(have, max(count, 2 * have))])
