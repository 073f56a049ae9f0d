"""Complexity-driven widths: a layer gives filters in proportion to its share of the network's complexity.

Zawish, Davy, Abraham: Complexity-Driven CNN Compression for Resource-constrained Edge AI (arXiv 2208.12816). Layers are
drawn by lot, each with the weight

    w_l = X_l / Σ_j X_j,        X_l of layer l:   parameters              k² · C_in · C_out       (parameter-aware)
                                                  multiply-accumulates    k² · C_in · C_out · H·W (FLOPs-aware)
                                                  bytes of its output     4 · C_out · H·W         (memory-aware)

and the layer that is drawn loses filters; the weights are computed again after every draw, so a layer that has given is
drawn less often. The abstract fixes this much; step size and stopping rule are choices of ours. Layers whose channels
are coupled are drawn as one, with the sum of their complexities, and a layer of several groups is divided by channels.

The draws go on until every group stands on its floor; the score of a channel is the draw that took it. So the planner,
which takes channels by score until all caps hold and then fills up, follows the draws and lands on the budget exactly.
Which filters of a layer go is not the paper's question (it draws them too, `filters: random`); by default the ones with
the largest weights stay, for recovery to start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.analysis import ChannelAnalysis
from core.analysis.schema import operator_name
from core.analysis.values import Labels, Value, factors
from core.budget import Constraint
from core.methods.magnitude import weight_norms
from core.methods.method import Evidence, Method
from core.methods.options import PlanConfig
from core.network import Network
from core.planning import PlanOptions
from core.planning.bounds import Bounds

MODES = ("params", "flops", "memory")
_BYTES = 4
# Up to so many channels in all, a draw takes one; in larger networks 2 % of the layer, as the time goes with the draws.
_MOST_SINGLE_DRAWS = 8192
_SHARE_OF_LARGE = 0.02


@dataclass(frozen=True)
class ComplexityConfig(PlanConfig):
    """mode: whose complexity weighs the draws; auto: that of the tightest cap. step: share of a layer that a draw
    takes.

    step None: one channel, or 2 % of the layer in large networks. filters: which channels of a layer stay. seeds: how
    often it is drawn and recovered, compare: whether under the other modes, too (`core.draws`).
    """

    mode: str = "auto"
    step: float | None = None
    filters: str = "magnitude"
    seeds: int = 1
    compare: bool = False

    def mode_for(self, analysis: ChannelAnalysis, constraints: Sequence[Constraint]) -> str:
        return mode_of(analysis, constraints) if self.mode == "auto" else self.mode

    def plan_options(self) -> PlanOptions:
        options = super().plan_options()
        return options if options.ranking == "per_layer" else replace(options, ranking="as_scored")


@dataclass(frozen=True, eq=False)
class Complexity:
    """X of every group under one mode, as a function of the kept lengths of all label vectors.

    fixed, slope: kept lengths are `fixed + slope @ widths`, the last is always 1. constants, factors, row_layer: terms
    `constant × Π lengths` and the layer that each belongs to. out: index of each layer's output length. part_layer,
    part_group, part_channels: channels of a layer per component of a group.
    """

    fixed: np.ndarray
    slope: np.ndarray
    constants: np.ndarray
    factors: np.ndarray
    row_layer: np.ndarray
    out: np.ndarray
    part_layer: np.ndarray
    part_group: np.ndarray
    part_channels: np.ndarray

    @staticmethod
    def of(network: Network, analysis: ChannelAnalysis, mode: str) -> Complexity:
        """mode: `params`, `flops` or `memory`."""
        lengths = _Lengths(analysis)
        rows: list[tuple[int, int, tuple[int, ...]]] = []
        out: list[int] = []
        macs: dict[str, list[tuple[int, tuple[Labels, ...]]]] = {}
        for row in analysis.trace.mac_rows:
            macs.setdefault(row.node, []).append((row.constant, row.vectors))
        for node in network.graph.nodes:
            value = analysis.trace.values.get(node.name)
            if node.name not in macs or not isinstance(value, Value):
                continue
            axis = 1 if operator_name(node.target).startswith("conv") else value.rank - 1
            if axis not in value.labels:
                continue
            read = [one.target for one in node.all_input_nodes if one.op == "get_attr"]
            terms = {
                "flops": macs[node.name],
                "params": [
                    factors(analysis.trace.tensors[name])
                    for name in read
                    if name in network.parameter_names and name in analysis.trace.tensors
                ],
                "memory": [(_BYTES * factors(value)[0], factors(value)[1])],
            }[mode]
            rows += [(len(out), constant, tuple(map(lengths.index, vectors))) for constant, vectors in terms]
            out.append(lengths.index(value.labels[axis]))
        fixed, slope = lengths.table()
        longest = max((len(indices) for _, _, indices in rows), default=1) or 1
        padded = np.full((len(rows), longest), len(fixed) - 1, dtype=np.int64)
        for row, (_, _, indices) in enumerate(rows):
            padded[row, : len(indices)] = indices
        outputs = np.array(out, dtype=np.int64)
        part_layer, part_group = np.nonzero(slope[outputs]) if len(out) else (np.zeros(0, int), np.zeros(0, int))
        return Complexity(
            fixed=fixed,
            slope=slope,
            constants=np.array([float(constant) for _, constant, _ in rows]),
            factors=padded,
            row_layer=np.array([layer for layer, _, _ in rows], dtype=np.int64),
            out=outputs,
            part_layer=part_layer,
            part_group=part_group,
            part_channels=slope[outputs][part_layer, part_group] if len(out) else np.zeros(0),
        )

    def per_group(self, widths: np.ndarray) -> np.ndarray:
        """float64 per group: the complexity of its layers when group g keeps widths[g] components."""
        return self._per_group(self.fixed + self.slope @ widths, widths)

    def _per_group(self, lengths: np.ndarray, widths: np.ndarray) -> np.ndarray:
        values = self.constants * lengths[self.factors].prod(axis=1)
        layers = np.bincount(self.row_layer, values, minlength=len(self.out))
        per_channel = layers / np.maximum(lengths[self.out], 1)
        parts = per_channel[self.part_layer] * self.part_channels * widths[self.part_group]
        return np.bincount(self.part_group, parts, minlength=len(widths))

    def draws(
        self, full: np.ndarray, lowest: np.ndarray, rng: np.random.Generator, step: float | None
    ) -> list[tuple[int, int]]:
        """(group, components that it gives), draw after draw, until every group with a complexity is at its lowest."""
        if step is None:
            step = 0.0 if full.sum() <= _MOST_SINGLE_DRAWS else _SHARE_OF_LARGE
        widths, lengths = full.copy(), self.fixed + self.slope @ full
        found = []
        while True:
            bounds = np.cumsum(np.where(widths > lowest, self._per_group(lengths, widths), 0.0))
            if not len(bounds) or bounds[-1] <= 0:
                return found
            # `side="right"` never takes a group of weight 0.
            group = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
            taken = min(max(1, round(step * int(widths[group]))), int(widths[group] - lowest[group]))
            widths[group] -= taken
            lengths -= taken * self.slope[:, group]
            found.append((group, taken))


class _Lengths:
    """Label vectors by identity, and their kept lengths as a linear function of the widths."""

    def __init__(self, analysis: ChannelAnalysis) -> None:
        self._analysis = analysis
        self._index: dict[int, int] = {}
        self._vectors: list[Labels] = []

    def index(self, vector: Labels) -> int:
        if id(vector) not in self._index:
            self._index[id(vector)] = len(self._vectors)
            self._vectors.append(vector)
        return self._index[id(vector)]

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """fixed [vectors + 1], slope [vectors + 1, groups]."""
        analysis, groups = self._analysis, len(self._analysis.groups)
        group_of = np.full(analysis.components, groups, dtype=np.int64)
        for group in analysis.groups:
            group_of[group.components] = group.index
        fixed, slope = np.ones(len(self._vectors) + 1), np.zeros((len(self._vectors) + 1, groups))
        for row, vector in enumerate(self._vectors):
            counts = np.bincount(group_of[analysis.component_of[vector]], minlength=groups + 1)
            fixed[row] = counts[groups]
            slope[row] = counts[:groups] / np.maximum(analysis.full_widths, 1)
        return fixed, slope


def mode_of(analysis: ChannelAnalysis, constraints: Sequence[Constraint]) -> str:
    """The complexity that the tightest cap limits; FLOPs where no cap can be planned for (a latency)."""
    full = analysis.costs(analysis.full_widths)
    shares = []
    for constraint in constraints:
        by_weights = constraint.metric in ("params", "size") or constraint.kind == "weights"
        now = full.weight_bytes if constraint.metric == "size" else constraint.value(full)
        mode = "params" if by_weights else "memory" if constraint.metric == "memory" else "flops"
        shares.append((constraint.limit / max(1, now), mode))
    return min(shares, key=lambda one: one[0])[1] if shares else "flops"


def scores(network: Network, analysis: ChannelAnalysis, config: ComplexityConfig, evidence: Evidence) -> np.ndarray:
    """float64 per component: when its group gave it, the first draw lowest. The same for the same seed and network."""
    mode = config.mode_for(analysis, evidence.constraints)
    layers, filters = (np.random.default_rng([evidence.seed, stream]) for stream in range(2))
    random = config.filters == "random"
    order = filters.random(analysis.components) if random else weight_norms(network, analysis, 1)
    lowest = Bounds.of(analysis, config.plan_options()).lowest
    complexity = Complexity.of(network, analysis, mode)
    leaving = [group.components[np.argsort(order[group.components], kind="stable")] for group in analysis.groups]
    given = np.zeros(len(leaving), dtype=np.int64)
    found = np.zeros(analysis.components)
    time = 0
    for group, taken in complexity.draws(analysis.full_widths, lowest, layers, config.step):
        members = leaving[group][given[group] : given[group] + taken]
        found[members] = np.arange(time, time + taken) + 1.0
        given[group] += taken
        time += taken
    for group, members in enumerate(leaving):
        rest = members[given[group] :]
        found[rest] = time + 1.0 + np.arange(len(rest))
    return found


METHOD = Method(
    type="complexity",
    title="Complexity-driven widths",
    description=(
        "Draws by lot (seeded) which layer gives channels, each by its share of the network's parameters, FLOPs or "
        "activation memory, down to the budget; the filters with the largest weights stay."
    ),
    paper="arXiv:2208.12816",
    options={
        "mode": {
            "type": "string",
            "enum": ["auto", *MODES],
            "default": "auto",
            "description": "Whose share weighs the draws; auto takes what the tightest cap limits.",
        },
        "step": {
            "type": "number",
            "minimum": 0,
            "maximum": 0.5,
            "description": "Share of a layer that one draw takes, at least one channel; by default one, or 2 % in large networks.",
        },
        "filters": {
            "type": "string",
            "enum": ["magnitude", "random"],
            "default": "magnitude",
            "description": "Which channels of a layer stay: those with the largest weights, or drawn by lot as in the paper.",
        },
        "seeds": {
            "type": "integer",
            "minimum": 1,
            "maximum": 10,
            "default": 1,
            "description": "How many draws to make and recover, with seeds from the job's on; the best by validation is "
            "delivered, and the report has mean and spread.",
        },
        "compare": {
            "type": "boolean",
            "default": False,
            "description": "Recover networks of the other two modes as well, so that the report shows the trade-off.",
        },
    },
    config_type=ComplexityConfig,
    score=scores,
)
