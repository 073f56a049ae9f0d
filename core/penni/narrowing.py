"""Shared kernels of a network that then loses channels: coefficients are cut with them, and the caps are reached again.

Rows of a layer's coefficients are its output channels and their columns belong to its input channels, so that removing
a channel of the written-out network removes the same of the factors; the kernels are shared by all and stay. Columns
that a cap has no room for leave as in a reduction, and what is left is fitted to the original once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.budget import Constraint
from core.methods.method import Fitting
from core.network import Network
from core.penni.decomposition import SharedKernels
from core.penni.fitting import KernelSolver
from core.penni.landing import landed
from core.penni.program import LATER_SWEEPS
from core.penni.reduced import Reduced, forms, reached, refusal
from core.penni.rewriting import written_out
from core.penni.search import ColumnSearch, Selection
from core.penni.shrinking import compose
from core.penni.sites import sites
from core.penni.slimming import Slim, slim
from core.recovery.recalibration import Kept
from core.recovery.refit import refit


def keeps_all(
    reduced: Reduced,
    pruned: Network,
    cut: Kept,
    constraints: Sequence[Constraint],
    aims: Sequence[Constraint],
    round_to: int,
) -> bool:
    """Whether no column has to go for the caps and aims; see `narrow`."""
    return _search(reduced, pruned, cut, (*constraints, *aims), round_to)[0].everything.meets(constraints, aims)


def narrow(
    reduced: Reduced,
    pruned: Network,
    cut: Kept,
    constraints: Sequence[Constraint],
    aims: Sequence[Constraint],
    *,
    round_to: int,
    nearest: bool,
    fitting: Fitting | None,
) -> Reduced:
    """`reduced` after its written-out network became `pruned`. cut: what is left of the tensors of the former. aims:
    caps on the paper's count.

    Raises EngineError("target_infeasible") where what would be delivered of the fewest columns exceeds a cap or an aim;
    with `nearest` these are taken.
    """
    limits = (*constraints, *aims)
    search, factors = _search(reduced, pruned, cut, limits, round_to)
    selection = landed(search, lambda tried: _slim(pruned, factors, tried), constraints, aims)
    if selection is None and not nearest:
        raise refusal(_slim(pruned, factors, search.smallest), constraints, aims, search.original)
    chosen = selection or search.smallest
    if fitting is None:
        found = _slim(pruned, factors, chosen)
    else:
        found = _fitted(pruned, factors, chosen, fitting, constraints, aims, round_to)
    report = {
        **reduced.report,
        **forms(found),
    }
    if aims:
        report["aims"] = reached(aims, found)
    kept = compose(compose(reduced.kept, cut), found.kept)
    return Reduced(found.network, found.staged, found.costs, kept, report)


def _search(
    reduced: Reduced, pruned: Network, cut: Kept, constraints: Sequence[Constraint], round_to: int
) -> tuple[ColumnSearch, dict[str, SharedKernels]]:
    factors = {
        layer.site.weight: one.with_channels(cut.get(layer.site.weight, ())) for layer, one in reduced.layers.items()
    }
    return _searching(pruned, factors, constraints, round_to), factors


def _searching(
    network: Network, factors: Mapping[str, SharedKernels], constraints: Sequence[Constraint], round_to: int
) -> ColumnSearch:
    found = [site for site in sites(network, pointwise=True) if site.weight in factors]
    return ColumnSearch(network, found, factors, constraints, round_to)


def _slim(network: Network, factors: Mapping[str, SharedKernels], selection: Selection) -> Slim:
    """What would be delivered of a selection."""
    left = {weight: factors[weight].with_columns(mask) for weight, mask in selection.live.items()}
    return slim(network, left, selection.live)


def _fitted(
    network: Network,
    factors: Mapping[str, SharedKernels],
    selection: Selection,
    fitting: Fitting,
    constraints: Sequence[Constraint],
    aims: Sequence[Constraint],
    round_to: int,
) -> Slim:
    """Factors and plain layers solved for what the original says, in the order of execution; within the limits again
    where a channel that said nothing says a number now, and stays."""
    left = {weight: factors[weight].with_columns(mask) for weight, mask in selection.live.items()}
    solvers = {weight: KernelSolver(one, LATER_SWEEPS) for weight, one in left.items()}
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
    if found.meets(constraints, aims):
        return found
    search = _searching(fitted, solved, (*constraints, *aims), round_to)
    again = landed(search, lambda tried: _slim(fitted, solved, tried), constraints, aims)
    return found if again is None else _slim(fitted, solved, again)
