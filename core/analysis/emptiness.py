"""Axes that no layer and no cut keeps from becoming empty.

A layer that multiplies keeps an output channel, and a part that is cut out keeps a position; nearly every axis contains
one of them. What is left are axes that a parameter or an expansion brings in by itself: the rows of an einsum's weight,
the copies of a single channel. They are widths of their own, or a plan could remove all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from core.analysis.context import tensor_arguments
from core.analysis.trace import Trace
from core.analysis.values import Labels


def bare_axes(
    trace: Trace, widths: Sequence[tuple[str, Labels]], component_of: np.ndarray, frozen: np.ndarray
) -> Iterator[tuple[str, Labels]]:
    """(node or tensor name, labels) of every axis that could lose all its positions while each of `widths` keeps one.

    frozen: bool per component. Linear in the labels of the graph.
    """
    inside = np.zeros(len(frozen), dtype=bool)
    by_first: dict[int, list[np.ndarray]] = {}
    for _, vector in widths:
        _index(by_first, np.unique(component_of[vector]))
    seen: set[int] = set()
    for name, vector in _axes(trace):
        if id(vector) in seen:
            continue
        seen.add(id(vector))
        components = component_of[vector]
        if not components.size or frozen[components].any():
            continue
        inside[components] = True
        kept = any(inside[width].all() for first in components.tolist() for width in by_first.get(first, ()))
        inside[components] = False
        if not kept:
            _index(by_first, np.unique(components))
            # As the parts of splits are named: no layer that a user could limit.
            yield f"{name}[axis]", vector


def _index(by_first: dict[int, list[np.ndarray]], components: np.ndarray) -> None:
    """Remember a width under its first component: it can only lie inside an axis that has that one."""
    if components.size:
        by_first.setdefault(int(components[0]), []).append(components)


def _axes(trace: Trace) -> Iterable[tuple[str, Labels]]:
    for name, value in trace.tensors.items():
        for vector in value.labels.values():
            yield name, vector
    for name, found in trace.values.items():
        for value in tensor_arguments([found]):
            for vector in value.labels.values():
                yield name, vector
