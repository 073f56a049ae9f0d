"""Plan: which channels stay and what that will cost. Immutable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from core.analysis import ChannelAnalysis
from core.budget import Constraint, Costs
from core.planning.bounds import Bounds, layers_by_name
from core.planning.explanation import binding_constraint, explain
from core.planning.given import step_of
from core.planning.search import Problem


@dataclass(frozen=True)
class PlannedLayer:
    """Output channels of one layer before and after, and between which widths and in which steps it may be planned.

    group: what its channels belong to; layers of one group have one width. Empty where the width is fixed.
    """

    name: str
    before: int
    after: int
    smallest: int
    largest: int
    step: int
    group: str


@dataclass(frozen=True, eq=False)
class Plan:
    """keep: bool per component (frozen ones True). widths: int64 kept components per group. predicted: exact costs.

    Both arrays are read-only. binding: the cap that is used most, None where nothing had to leave. note: how the caps
    were used, for a person. layers: every layer that can be named, in execution order.
    """

    keep: np.ndarray
    widths: np.ndarray
    predicted: Costs
    constraints: tuple[Constraint, ...]
    layers: tuple[PlannedLayer, ...]
    binding: Constraint | None
    note: str


def compose_plan(problem: Problem, levels: np.ndarray, bounds: Bounds) -> Plan:
    """The plan that stands on `levels` and keeps the best components of every group. bounds: what was allowed."""
    analysis, widths = problem.analysis, problem.lattice.widths(levels)
    keep = np.ones(analysis.components, dtype=bool)
    for components, width in zip(problem.ranking.order, widths, strict=True):
        keep[components[width:]] = False
    keep.flags.writeable = False
    widths.flags.writeable = False
    return Plan(
        keep=keep,
        widths=widths,
        predicted=problem.costs(levels),
        constraints=problem.constraints,
        layers=_planned_layers(analysis, widths, bounds),
        binding=binding_constraint(problem, levels),
        note=explain(problem, levels),
    )


def _planned_layers(analysis: ChannelAnalysis, widths: np.ndarray, bounds: Bounds) -> tuple[PlannedLayer, ...]:
    names = _group_names(analysis)
    layers = []
    for layer in layers_by_name(analysis).values():
        smallest, largest = bounds.range_of(layer)
        layers.append(
            PlannedLayer(
                name=layer.name,
                before=layer.width,
                after=layer.fixed + sum(count * int(widths[group]) for group, count in layer.terms),
                smallest=smallest,
                largest=largest,
                step=step_of(layer),
                group=" + ".join(names[group] for group, _ in layer.terms),
            )
        )
    return tuple(layers)


def _group_names(analysis: ChannelAnalysis) -> list[str]:
    """The layer that makes the channels; numbered where it makes several groups."""
    seen: Counter[str] = Counter()
    names = []
    for group in analysis.groups:
        seen[group.label] += 1
        names.append(group.label if seen[group.label] == 1 else f"{group.label} ({seen[group.label]})")
    return names
