"""Landing with single coefficients as the unit: which of them stay, under one threshold over all layers.

The paper prunes single coefficients and counts what is left as if a runtime skipped every zero. An ordinary runtime
does not, so two things are counted here and told apart: the caps of a budget are met in the delivered form, as always,
and *aims*, caps on the paper's count, are met by the nonzeros. A stored file profits from zeros as well: they code into
almost nothing.

Every layer keeps its factors, whichever form it is delivered in. Layers that run cheaper as the plain convolution that
their factors make are delivered as that. 1×1 convolutions take part with their weights as coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from core.budget import Constraint, Costs
from core.network import Network
from core.penni.costs import dense_counts, nonzero_counts, two_stage_counts
from core.penni.decomposition import SharedKernels
from core.penni.search import ColumnSearch, Selection
from core.penni.sites import Site

# Of a layer's coefficients, this share stays whatever the threshold says.
LEAST_SHARE = 0.01


class CoefficientSearch(ColumnSearch):
    """`ColumnSearch` with single coefficients. score: what the threshold is held against, which is the magnitude, or
    with "deviation" the magnitude in units of the layer's standard deviation: |a| ≥ s · std stays, which is the paper's
    rule.
    """

    def __init__(
        self,
        network: Network,
        sites: Sequence[Site],
        factors: Mapping[str, SharedKernels],
        constraints: Sequence[Constraint],
        score: str = "magnitude",
    ) -> None:
        self._score = score
        super().__init__(network, sites, factors, constraints, round_to=1)

    def _refilled(self, count: int, constraints: Sequence[Constraint], aims: Sequence[Constraint]) -> Selection:
        # What is next under the threshold is one coefficient, or several that only fit together.
        return self._first(count)

    def _ranking(self) -> tuple[range, int]:
        """The number of coefficients, and how many must stay; which ones is in the thresholds of `_masks`."""
        scores, musts = [], []
        self._scores: dict[str, Tensor] = {}
        self._least: dict[str, Tensor] = {}
        for weight, factors in self._factors.items():
            found = factors.coefficients.double().abs()
            if self._score == "deviation":
                found = found / factors.coefficients.double().std().clamp_min(torch.finfo(torch.float64).tiny)
            flat = found.flatten()
            alive = int((flat > 0).sum())
            least = min(max(1, math.ceil(LEAST_SHARE * flat.numel())), max(1, alive))
            must = torch.zeros(flat.numel(), dtype=torch.bool)
            must[flat.topk(least).indices] = True
            self._least[weight] = must.view(found.shape)
            self._scores[weight] = found
            scores.append(flat[~must & (flat > 0)])
            musts.append(least)
        self._sorted = torch.cat(scores).sort(descending=True).values
        return range(sum(musts) + len(self._sorted)), sum(musts)

    def _masks(self, count: int) -> dict[str, Tensor]:
        rest = count - self._floor
        if rest <= 0:
            return dict(self._least)
        if rest >= len(self._sorted):
            return {weight: self._least[weight] | (scores > 0) for weight, scores in self._scores.items()}
        # Equal scores stay or go together: none of them where only some would fit.
        threshold = self._sorted[rest]
        return {weight: self._least[weight] | (scores > threshold) for weight, scores in self._scores.items()}

    def _selection(self, masks: Mapping[str, Tensor]) -> Selection:
        params, macs = self._base.params, self._base.macs
        nonzero_params, nonzero_macs = params, macs
        live, dense = {}, {}
        for weight, mask in masks.items():
            site = self._sites[weight]
            columns = mask.any(dim=0)
            kernels, nonzeros = int(columns.any(dim=0).sum()), int(mask.sum())
            whole = dense_counts(site.outputs, site.pieces, site.taps, site.positions)
            staged = two_stage_counts(site.outputs, int(columns.sum()), kernels, site.taps, site.positions)
            counts = whole
            if site.taps > 1 and self._cost(staged) < self._cost(whole):
                counts, live[weight] = staged, mask
            else:
                dense[weight] = mask
            params += counts.params - whole.params
            macs += counts.macs - whole.macs
            left = nonzero_counts(
                nonzeros, int(columns.sum()), kernels=kernels, taps=site.taps, positions=site.positions
            )
            nonzero_params += left.params - whole.params
            nonzero_macs += left.macs - whole.macs
        costs = self._base_with(params, macs)
        sparse = replace(costs, params=nonzero_params, macs=nonzero_macs)
        selection = Selection(live, costs, dense, sparse)
        return self.exact(selection) if self._needs_network else selection


def aims_of(original: Costs, params: float | None, macs: float | None) -> tuple[Constraint, ...]:
    """Caps on the paper's count from shares of the original."""
    shares = (("params", params), ("macs", macs))
    return tuple(
        Constraint(metric, None, math.floor(share * original.value(metric)))
        for metric, share in shares
        if share is not None
    )
