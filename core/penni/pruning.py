"""What a reduction prunes and how far: a value that everything which takes part in it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from core.budget import Constraint, Costs
from core.network import Network
from core.penni.bases import Bases
from core.penni.coefficients import CoefficientSearch
from core.penni.decomposition import SharedKernels, exact_rank
from core.penni.search import ColumnSearch
from core.penni.sites import Site, sites

# Images with few channels have few columns, and all of them matter.
LEAST_INPUTS = 5
# What runtimes like: see `core.penni.search`.
ROUND_TO = 16


@dataclass(frozen=True)
class Pruning:
    """constraints: caps on the delivered form, as any runtime counts it. aims: caps on the paper's count.

    bases: how many shared kernels a layer starts with. unit: "column", in blocks of `round_to`, or "coefficient" for
    single ones (`core.penni.coefficients`), which `score` compares. lossy: take dead channels out where that changes
    what is computed at the borders of images.
    """

    constraints: Sequence[Constraint]
    aims: Sequence[Constraint] = ()
    bases: Bases = field(default_factory=Bases)
    unit: str = "column"
    score: str = "magnitude"
    round_to: int = ROUND_TO
    lossy: bool = False

    @property
    def limits(self) -> tuple[Constraint, ...]:
        return (*self.constraints, *self.aims)

    def eased(self, original: Costs, share: float) -> Pruning:
        """With the aims this far on the way from what `original` costs, in equal ratios; the caps as they are."""
        return replace(self, aims=tuple(aim.on_the_way(original, share) for aim in self.aims))

    def sites(self, network: Network) -> dict[str, Site]:
        """The layers that take part, by weight."""
        return {
            site.weight: site
            for site in sites(network, pointwise=True)
            if site.inputs >= LEAST_INPUTS and site.outputs > 1
        }

    def rank(self, site: Site, weight: Tensor, original: Costs) -> int | None:
        """The kernels that make a layer exactly where each lies over all of its inputs; None where they lie over one.

        A 1×1 convolution has no others, where whole columns are pruned. Another layer has them where its weight is of
        so low a rank that the exact chain is within the layer's share of the caps already.
        """
        if self.unit == "coefficient" or site.path in self.bases.layers:
            return None
        rank = exact_rank(weight)
        if site.taps == 1:
            return rank
        share = min(min(1.0, limit.limit / max(1, limit.value(original))) for limit in self.limits)
        taps = site.inputs * site.taps
        return rank if rank * (taps + site.outputs) <= share * site.outputs * taps else None

    @property
    def whole_kernels(self) -> bool:
        """Whether all kernels that there are should be pruned from.

        What is counted by parameters alone wants single coefficients of all of them: turning them costs nothing, and
        truncating saves no more than pruning does.
        """
        return self.unit == "coefficient" and not {limit.metric for limit in self.limits} & {"macs", "flops"}

    def search(
        self,
        network: Network,
        found: Sequence[Site],
        factors: Mapping[str, SharedKernels],
        losses: Mapping[str, Tensor] | None = None,
    ) -> ColumnSearch:
        """losses: by weight, what a fit says that each column is worth."""
        if self.unit == "coefficient":
            return CoefficientSearch(network, found, factors, self.constraints, self.score)
        # Whole columns: what is counted by nonzeros is what any runtime executes.
        return ColumnSearch(network, found, factors, self.limits, self.round_to, losses)
