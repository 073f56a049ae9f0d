"""Shared kernels of a network that then loses channels: coefficients are cut with them, and the caps are reached again.

Rows of a layer's coefficients are its output channels and their columns belong to its input channels, so that removing
a channel of the written-out network removes the same of the factors; the kernels are shared by all and stay. Columns
that a cap has no room for leave, by their weights alone, and what is left is fitted to the original once more.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from core.methods.method import Fitting
from core.network import Network
from core.penni.decomposition import SharedKernels
from core.penni.fitting import KernelSolver
from core.penni.landing import landed
from core.penni.program import LATER_SWEEPS
from core.penni.pruning import Pruning
from core.penni.reduced import Reduced, forms, reached, refusal
from core.penni.rewriting import written_out
from core.penni.search import ColumnSearch, Selection
from core.penni.shrinking import compose
from core.penni.sites import sites
from core.penni.slimming import Slim, slim
from core.recovery.recalibration import Kept
from core.recovery.refit import refit


def keeps_all(reduced: Reduced, pruned: Network, cut: Kept, pruning: Pruning) -> bool:
    """Whether no column has to go for the caps and aims; see `narrow`."""
    search = _search(pruned, _left(reduced, cut), pruning)
    return search.everything.meets(pruning.constraints, pruning.aims)


def narrow(
    reduced: Reduced, pruned: Network, cut: Kept, pruning: Pruning, *, nearest: bool, fitting: Fitting | None
) -> Reduced:
    """`reduced` after its written-out network became `pruned`. cut: what is left of the tensors of the former.

    Raises EngineError("target_infeasible") where what would be delivered of the fewest columns exceeds a cap or an aim;
    with `nearest` these are taken.
    """
    factors = _left(reduced, cut)
    search = _search(pruned, factors, pruning)
    selection = landed(search, lambda tried: _slim(pruned, factors, tried), pruning)
    if selection is None and not nearest:
        raise refusal(_slim(pruned, factors, search.smallest), pruning, search.original)
    chosen = selection or search.smallest
    found = _slim(pruned, factors, chosen) if fitting is None else _fitted(pruned, factors, chosen, fitting, pruning)
    report = {**reduced.report, **forms(found)}
    if pruning.aims:
        report["aims"] = reached(pruning.aims, found)
    kept = compose(compose(reduced.kept, cut), found.kept)
    return Reduced(found.network, found.staged, found.costs, kept, report)


def _left(reduced: Reduced, cut: Kept) -> dict[str, SharedKernels]:
    """The factors of the channels that are left, by weight."""
    return {
        layer.site.weight: one.with_channels(cut.get(layer.site.weight, ())) for layer, one in reduced.layers.items()
    }


def _search(
    network: Network,
    factors: Mapping[str, SharedKernels],
    pruning: Pruning,
    losses: Mapping[str, Tensor] | None = None,
) -> ColumnSearch:
    found = [site for site in sites(network, pointwise=True) if site.weight in factors]
    return pruning.search(network, found, factors, losses)


def _slim(network: Network, factors: Mapping[str, SharedKernels], selection: Selection) -> Slim:
    """What would be delivered of a selection."""
    left = {weight: factors[weight].with_columns(mask) for weight, mask in selection.live.items()}
    return slim(network, left, selection.live)


def _fitted(
    network: Network,
    factors: Mapping[str, SharedKernels],
    selection: Selection,
    fitting: Fitting,
    pruning: Pruning,
) -> Slim:
    """Factors and plain layers solved for what the original says, in the order of execution; within the limits again
    where a channel that said nothing says a number now, and stays."""
    left = {weight: factors[weight].with_columns(mask) for weight, mask in selection.live.items()}
    solvers = {weight: KernelSolver(one, LATER_SWEEPS, judging=True) for weight, one in left.items()}
    fitted = refit(
        written_out(network, left),
        fitting.original,
        fitting.images,
        kept=fitting.kept,
        device=fitting.device,
        solvers=solvers,
    ).network
    solved = {weight: solver.shared for weight, solver in solvers.items()}
    found = _slim(fitted, solved, selection)
    if found.meets(pruning.constraints, pruning.aims):
        return found
    losses = {weight: solver.losses for weight, solver in solvers.items() if solver.losses is not None}
    again = landed(_search(fitted, solved, pruning, losses), lambda tried: _slim(fitted, solved, tried), pruning)
    return found if again is None else _slim(fitted, solved, again)
