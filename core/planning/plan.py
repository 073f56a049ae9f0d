"""Plan: which channels stay, what that will cost, and how the budget was used. Immutable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.analysis import ChannelAnalysis
from core.budget import Constraint, Costs


@dataclass(frozen=True)
class PlannedLayer:
    """Channels of one layer before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Plan:
    """keep: bool per component (frozen ones True). widths: int64 kept components per group. predicted: exact costs.

    binding: the cap that is used most, None without caps. note: one sentence for a person on how the caps were used.
    """

    keep: np.ndarray
    widths: np.ndarray
    predicted: Costs
    constraints: tuple[Constraint, ...]
    layers: tuple[PlannedLayer, ...]
    binding: Constraint | None
    note: str


def use(costs: Costs, constraint: Constraint) -> float:
    """Share of the cap that is used; above 1 it is missed."""
    return constraint.value(costs) / constraint.limit if constraint.limit > 0 else float("inf")


def fits(costs: Costs, constraints: Sequence[Constraint]) -> bool:
    return all(constraint.met_by(costs) for constraint in constraints)


def compose_plan(
    analysis: ChannelAnalysis, order: Sequence[np.ndarray], widths: np.ndarray, constraints: Sequence[Constraint]
) -> Plan:
    """The plan that keeps the first widths[g] components of order[g] (best first) in every group g."""
    keep = np.ones(analysis.components, dtype=bool)
    for group, components in enumerate(order):
        keep[components[widths[group] :]] = False
    predicted = analysis.costs(widths)
    binding = max(constraints, key=lambda constraint: use(predicted, constraint), default=None)
    layers = tuple(
        PlannedLayer(
            layer.name,
            layer.width,
            layer.fixed + sum(per_component * int(widths[g]) for g, per_component in layer.terms),
        )
        for layer in analysis.layers
    )
    return Plan(
        keep, widths, predicted, tuple(constraints), layers, binding, _note(analysis, widths, predicted, binding)
    )


def _note(analysis: ChannelAnalysis, widths: np.ndarray, costs: Costs, binding: Constraint | None) -> str:
    if binding is None:
        return "No cap was given."
    if (widths == analysis.full_widths).all():
        return "The network already fits every cap; nothing was removed."
    name = f"{binding.metric} ({binding.kind})" if binding.kind else binding.metric
    share = use(costs, binding)
    sentence = f"The cap on {name} binds: {share:.2%} of it is used."
    if share > 1:
        return f"The cap on {name} cannot be reached: {binding.value(costs):,} is the smallest, {binding.limit:,} the limit."
    if share < 0.99:
        sentence += f" No channel fits into the rest: the network has {len(widths)} groups of channels, and each step is larger."
    return sentence
