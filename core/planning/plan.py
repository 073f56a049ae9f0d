"""Plan: which channels stay and what that will cost. Immutable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.budget import Constraint, Costs
from core.planning.explanation import binding_constraint, explain
from core.planning.search import Problem


@dataclass(frozen=True)
class PlannedLayer:
    """Channels of one layer before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Plan:
    """keep: bool per component (frozen ones True). widths: int64 kept components per group. predicted: exact costs.

    Both arrays are read-only. binding: the cap that is used most, None where nothing had to leave. note: how the caps
    were used, for a person.
    """

    keep: np.ndarray
    widths: np.ndarray
    predicted: Costs
    constraints: tuple[Constraint, ...]
    layers: tuple[PlannedLayer, ...]
    binding: Constraint | None
    note: str


def compose_plan(problem: Problem, levels: np.ndarray) -> Plan:
    """The plan that stands on `levels` and keeps the best components of every group."""
    analysis, widths = problem.analysis, problem.lattice.widths(levels)
    keep = np.ones(analysis.components, dtype=bool)
    for components, width in zip(problem.ranking.order, widths, strict=True):
        keep[components[width:]] = False
    layers = tuple(
        PlannedLayer(layer.name, layer.width, layer.fixed + sum(count * int(widths[g]) for g, count in layer.terms))
        for layer in analysis.layers
    )
    keep.flags.writeable = False
    widths.flags.writeable = False
    return Plan(
        keep=keep,
        widths=widths,
        predicted=problem.costs(levels),
        constraints=problem.constraints,
        layers=layers,
        binding=binding_constraint(problem, levels),
        note=explain(problem, levels),
    )
