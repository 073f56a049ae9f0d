"""Landing on the budget: which (input channel, kernel) columns stay.

All columns of all layers are ranked by what their layer would lose without them (`core.penni.losses`). Where layers are
fitted, that is per unit of what a column costs, the greedy order of a knapsack. Before a fit nothing makes up for what
goes in front, where most of the cost is, and a column counts by its loss alone. One threshold over that ranking is
bisected on the exact cost of the network in its delivered form until every cap holds. Each layer runs in whichever form
costs it less, two stages or dense, so a layer stays dense until its columns pay. What is left under the caps is filled
with the next columns that fit.

Columns come and go in blocks of `round_to`: runtimes compute depthwise maps in vectors of 8 or 16 channels and are
several times slower on numbers in between (`benchmarks/penni_forms.py`).

Kernels that lie over all inputs (1×1 convolutions, and layers of low rank) are columns like the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor

from core.analysis import profile
from core.budget import Constraint, Costs
from core.network import Network
from core.penni.costs import LayerCounts, dense_counts, two_stage_counts
from core.penni.decomposition import SharedKernels
from core.penni.losses import weight_losses
from core.penni.rewriting import SharedLayer, executable, trainable
from core.penni.sites import Site
from core.planning import safetensors_bytes

# Of a layer's columns, this share stays whatever the ranking says: a layer without any says nothing.
LEAST_SHARE = 0.05
_BYTES = 4
# Blocks that are tried one by one once the threshold stands.
_REFILL_TRIES = 4096
# Blocks of kernels over all inputs are smaller by this: a layer has fewer of them, and each costs more.
_FINER = 4


@dataclass(frozen=True, eq=False)
class Selection:
    """live: by weight, bool [C, d], of the layers that run in two stages; the others are dense. costs: exact.

    With single coefficients (`core.penni.coefficients`) masks are [O, C, d]; `dense` are those of layers that are
    delivered as the plain convolution of what is left of their factors, and `sparse` is the paper's count.
    """

    live: Mapping[str, Tensor]
    costs: Costs
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    sparse: Costs | None = None

    @property
    def masks(self) -> dict[str, Tensor]:
        """Of all layers that have factors."""
        return {**self.live, **self.dense}

    @property
    def counted(self) -> Costs:
        """The paper's count; whole columns are what any runtime executes."""
        return self.sparse or self.costs

    def meets(self, constraints: Sequence[Constraint], aims: Sequence[Constraint] = ()) -> bool:
        """aims: caps on the paper's count."""
        return all(cap.met_by(self.costs) for cap in constraints) and all(aim.met_by(self.counted) for aim in aims)


class ColumnSearch:
    """Selections of one network's columns. factors: by weight, for every site that may run in another form.

    constraints: of the kinds that are to be met; they decide what is counted, and which form of a layer costs less.
    losses: by weight, what a fit says that each column is worth [C, d]; by the weights alone where there was none.
    """

    def __init__(
        self,
        network: Network,
        sites: Sequence[Site],
        factors: Mapping[str, SharedKernels],
        constraints: Sequence[Constraint],
        round_to: int,
        losses: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._network = network
        self._sites = {site.weight: replace(site, span=factors[site.weight].span) for site in sites}
        self._factors = factors
        self._losses = losses or {}
        self._round_to = round_to
        self._base = profile(network).costs
        self._constraints = tuple(constraints)
        self._by_params = all(_by_params(cap) for cap in constraints)
        self._scarce_params = self._by_params
        self._order, self._floor = self._ranking()
        if len({_by_params(cap) for cap in constraints}) > 1 and _by_params(self._tightest()):
            self._scarce_params = True
            self._order, self._floor = self._ranking()

    def _tightest(self) -> Constraint:
        """The cap that leaves the smallest share of what columns can take off its count."""
        most, least = (selection.costs for selection in (self.everything, self.smallest))

        def room(cap: Constraint) -> float:
            return (cap.limit - cap.value(least)) / max(1, cap.value(most) - cap.value(least))

        return min(self._constraints, key=room)

    @property
    def original(self) -> Costs:
        """What the network costs as it came."""
        return self._base

    @property
    def everything(self) -> Selection:
        """All columns."""
        return self._first(len(self._order))

    @property
    def smallest(self) -> Selection:
        """The fewest columns."""
        return self._first(self._floor)

    def land(self, constraints: Sequence[Constraint], aims: Sequence[Constraint] = ()) -> Selection | None:
        """The most within the caps, and within `aims` on the paper's count; None where even the fewest exceed one."""
        if not self.smallest.meets(constraints, aims):
            return None
        if self.everything.meets(constraints, aims):
            return self.everything
        low, high = self._floor, len(self._order)
        while high - low > 1:
            middle = (low + high) // 2
            if self._first(middle).meets(constraints, aims):
                low = middle
            else:
                high = middle
        return self._refilled(low, constraints, aims)

    def _first(self, count: int) -> Selection:
        """The first `count` blocks of the ranking."""
        return self._selection(self._masks(count))

    def _refilled(self, count: int, constraints: Sequence[Constraint], aims: Sequence[Constraint]) -> Selection:
        masks = self._masks(count)
        best = self._selection(masks)
        full: set[str] = set()
        for weight, columns in self._order[count : count + _REFILL_TRIES]:
            # A layer that is dense has all its columns already; the blocks of one layer cost the same.
            if weight in full or weight not in best.live:
                continue
            tried = masks[weight].clone()
            tried.view(-1)[columns] = True
            selection = self._selection({**masks, weight: tried})
            if selection.meets(constraints, aims):
                masks, best = {**masks, weight: tried}, selection
            else:
                full.add(weight)
        return best

    def _ranking(self) -> tuple[list[tuple[str, list[int]]], int]:
        """(weight, flat columns) of every block, those that must stay first, then by worth; and how many must stay."""
        must, rest = [], []
        for weight, factors in self._factors.items():
            live, losses = factors.live.flatten(), self._worth(weight).flatten()
            ranked = torch.where(live, losses, -1.0).argsort(descending=True, stable=True)
            size = self._block(factors)
            blocks = ranked[: int(live.sum())].split(size)
            floor = max(1, math.ceil(LEAST_SHARE * factors.pieces * factors.kernels / size))
            cost = self._column_cost(weight)
            entries = [(float(losses[block].mean()) / cost, weight, block.tolist()) for block in blocks]
            must += entries[:floor]
            rest += entries[floor:]
        rest.sort(key=lambda entry: -entry[0])
        return [(weight, block) for _, weight, block in must + rest], len(must)

    def _block(self, factors: SharedKernels) -> int:
        """How many columns come and go together. Maps of kernels over all inputs are an ordinary convolution's."""
        return self._round_to if factors.pieces > 1 else max(1, self._round_to // _FINER)

    def _worth(self, weight: str) -> Tensor:
        """What each column is worth. The weights say so of a layer that was not fitted, on the level of those that were."""
        if weight in self._losses:
            return self._losses[weight]
        sums = [float(losses.sum()) for losses in self._losses.values()]
        return (median(sums) if sums else 1.0) * weight_losses(self._factors[weight])

    def _column_cost(self, weight: str) -> float:
        """What a column's loss is divided by: its cost by the tightest cap, or without a fit its share of the layer's."""
        site, factors = self._sites[weight], self._factors[weight]
        if not self._losses:
            # Of a column whose kernel lies over one input: 1.
            return (factors.taps + factors.outputs) / (math.prod(factors.kernel) + factors.outputs)
        counts = two_stage_counts(site.outputs, 1, int(site.span > 1), site.taps, site.positions)
        return counts.params if self._scarce_params else counts.macs

    def _masks(self, count: int) -> dict[str, Tensor]:
        columns: dict[str, list[int]] = {weight: [] for weight in self._factors}
        for weight, block in self._order[:count]:
            columns[weight] += block
        masks = {}
        for weight, chosen in columns.items():
            factors = self._factors[weight]
            mask = torch.zeros(factors.pieces * factors.kernels, dtype=torch.bool)
            mask[chosen] = True
            masks[weight] = mask.view(factors.pieces, factors.kernels)
        return masks

    def _selection(self, masks: Mapping[str, Tensor]) -> Selection:
        params, macs = self._base.params, self._base.macs
        live = {}
        for weight, mask in masks.items():
            site = self._sites[weight]
            whole = dense_counts(site.outputs, site.pieces, site.taps, site.positions)
            staged = two_stage_counts(
                site.outputs, int(mask.sum()), int(mask.any(dim=0).sum()), site.taps, site.positions
            )
            if self._cost(staged) < self._cost(whole):
                live[weight] = mask
                params += staged.params - whole.params
                macs += staged.macs - whole.macs
        selection = Selection(live, self._base_with(params, macs))
        return self.exact(selection) if self._needs_network else selection

    def _base_with(self, params: int, macs: int) -> Costs:
        saved = self._base.params - params
        return replace(self._base, params=params, macs=macs, weight_bytes=self._base.weight_bytes - _BYTES * saved)

    @property
    def _needs_network(self) -> bool:
        """Activations and file sizes are not sums over layers."""
        return any(c.metric == "size" or (c.metric == "memory" and c.kind != "weights") for c in self._constraints)

    def _cost(self, counts: LayerCounts) -> int:
        return counts.params if self._by_params else counts.macs

    def exact(self, selection: Selection) -> Selection:
        """With every figure of the delivered form, activations and file included, which take a network to count."""
        layers = shared_layers(self._sites, self._factors, selection.live)
        network = executable(self._network, trainable(self._network, layers), layers)
        costs = profile(network).costs
        return replace(selection, costs=replace(costs, size_bytes=safetensors_bytes(network, pruned=True)))


def _by_params(cap: Constraint) -> bool:
    """Whether parameters are what it counts, as themselves or as bytes."""
    return cap.metric in ("params", "size") or (cap.metric, cap.kind) == ("memory", "weights")


def shared_layers(
    sites: Mapping[str, Site], factors: Mapping[str, SharedKernels], live: Mapping[str, Tensor]
) -> dict[SharedLayer, SharedKernels]:
    """The layers that run in two stages, with no more than these columns."""
    found = {}
    for weight, mask in live.items():
        kept = factors[weight].with_columns(mask)
        found[SharedLayer.of(sites[weight], kept)] = kept
    return found
