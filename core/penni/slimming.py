"""From a selection to what is delivered: weights written out, dead channels gone, each layer in its form.

Columns that are pruned leave channels that nobody reads, and rows of coefficients that are zero leave channels that say
nothing. Both are taken out of the written-out network by `core.penni.shrinking`, with everything that only served them;
the factors are cut to the channels that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from core.analysis import profile
from core.budget import Constraint, Costs
from core.network import Network
from core.penni.decomposition import SharedKernels
from core.penni.rewriting import SharedLayer, executable, fused, trainable, written_out
from core.penni.shrinking import shrink
from core.penni.sites import sites
from core.penni.sparse import sparse_network_counts
from core.planning import safetensors_bytes
from core.recovery.recalibration import Kept


@dataclass(frozen=True, eq=False)
class Slim:
    """network: with the weights that the factors make. staged: layers in two stages. dense: layers whose factors are
    pruned and trained, and delivered as the plain convolution that they make.

    costs: of the delivered form, exact. kept: what is left of the tensors of the network that came in, by name. dead:
    channels that were taken out, by reason (`core.penni.shrinking`).
    """

    network: Network
    staged: Mapping[SharedLayer, SharedKernels]
    dense: Mapping[SharedLayer, SharedKernels]
    costs: Costs
    kept: Kept
    dead: Mapping[str, int]

    @property
    def layers(self) -> dict[SharedLayer, SharedKernels]:
        """All that have factors, in the order of execution."""
        order = {site.weight: index for index, site in enumerate(sites(self.network, pointwise=True))}
        both = {**self.staged, **self.dense}
        return {layer: both[layer] for layer in sorted(both, key=lambda layer: order[layer.site.weight])}

    @property
    def sparse(self) -> Costs:
        """By the paper's count."""
        found = sparse_network_counts(self.network, trainable(self.network, self.layers), self.layers)
        return replace(self.costs, params=found["params"], macs=found["macs"])

    def meets(self, constraints: Sequence[Constraint], aims: Sequence[Constraint] = ()) -> bool:
        """aims: caps on the paper's count."""
        if not all(cap.met_by(self.costs) for cap in constraints):
            return False
        reached = self.sparse if aims else self.costs
        return all(aim.met_by(reached) for aim in aims)


def deliver(
    network: Network, trained: Network, staged: Iterable[SharedLayer], dense: Iterable[SharedLayer] = ()
) -> Network:
    """What is delivered of `trained`, the trainable form of both kinds of layers of `network`."""
    return executable(fused(network, trained, dense), trained, staged)


def slim(
    network: Network,
    factors: Mapping[str, SharedKernels],
    staged: Iterable[str],
    *,
    lossy: bool = False,
    seed: int = 0,
) -> Slim:
    """factors: pruned, by weight, of every layer that has any. staged: those that run in two stages, the others are
    dense.

    lossy: see `core.penni.shrinking.shrink`, whose error this raises.
    """
    shrunk = shrink(written_out(network, factors), lossy=lossy, seed=seed)
    by_weight = {site.weight: site for site in sites(shrunk.network, pointwise=True)}
    layers: dict[bool, dict[SharedLayer, SharedKernels]] = {True: {}, False: {}}
    chosen = frozenset(staged)
    for weight, one in factors.items():
        left = _cut(one, shrunk.kept.get(weight, ()), shrunk.network.tensors[weight])
        # A layer that lost its last column is a convolution with zeros: one channel of it may have to stay.
        if bool(left.live.any()):
            layers[weight in chosen][SharedLayer.of(by_weight[weight], left)] = left
    form = trainable(shrunk.network, {**layers[True], **layers[False]})
    delivered = deliver(shrunk.network, form, layers[True], layers[False])
    costs = replace(profile(delivered).costs, size_bytes=safetensors_bytes(delivered, pruned=True))
    return Slim(shrunk.network, layers[True], layers[False], costs, shrunk.kept, shrunk.report)


def _cut(factors: SharedKernels, kept: Sequence[np.ndarray | None], weight: Tensor) -> SharedKernels:
    """The coefficients of the channels that are left; where the shrunk weight is zero, they are, too."""
    return factors.with_channels(kept).with_used((weight != 0).flatten(2).any(dim=2))
