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
from core.penni.program import LATER_SWEEPS
from core.penni.reduced import Reduced, refusal
from core.penni.rewriting import written_out
from core.penni.search import ColumnSearch
from core.penni.shrinking import compose
from core.penni.sites import sites
from core.penni.slimming import slim
from core.recovery.recalibration import Kept
from core.recovery.refit import refit


def keeps_all(reduced: Reduced, pruned: Network, cut: Kept, constraints: Sequence[Constraint], round_to: int) -> bool:
    """Whether no column has to go for the caps; see `narrow`."""
    return _search(reduced, pruned, cut, constraints, round_to)[0].everything.meets(constraints)


def narrow(
    reduced: Reduced,
    pruned: Network,
    cut: Kept,
    constraints: Sequence[Constraint],
    *,
    round_to: int,
    nearest: bool,
    fitting: Fitting | None,
) -> Reduced:
    """`reduced` after its written-out network became `pruned`. cut: what is left of the tensors of the former.

    Raises EngineError("target_infeasible") where the fewest columns exceed a cap; with `nearest` these are taken.
    """
    search, factors = _search(reduced, pruned, cut, constraints, round_to)
    selection = search.land(constraints)
    if selection is None and not nearest:
        raise refusal(search.exact(search.smallest).costs, constraints, search.original)
    selection = selection or search.smallest
    left = {weight: factors[weight].with_columns(mask) for weight, mask in selection.live.items()}
    network = pruned
    if fitting is not None:
        network, left = _fitted(pruned, left, fitting)
    slimmed = slim(network, left, selection.live)
    report = {
        **reduced.report,
        "two_stage_layers": len(slimmed.staged),
        "columns": sum(layer.columns for layer in slimmed.staged),
        "kernels": {layer.site.path: layer.shared for layer in slimmed.staged},
    }
    kept = compose(compose(reduced.kept, cut), slimmed.kept)
    return Reduced(slimmed.network, slimmed.staged, slimmed.costs, kept, report)


def _search(
    reduced: Reduced, pruned: Network, cut: Kept, constraints: Sequence[Constraint], round_to: int
) -> tuple[ColumnSearch, dict[str, SharedKernels]]:
    factors = {
        layer.site.weight: one.with_channels(cut.get(layer.site.weight, ())) for layer, one in reduced.layers.items()
    }
    found = [site for site in sites(pruned) if site.weight in factors]
    return ColumnSearch(pruned, found, factors, constraints, round_to), factors


def _fitted(
    network: Network, factors: Mapping[str, SharedKernels], fitting: Fitting
) -> tuple[Network, dict[str, SharedKernels]]:
    """Factors and plain layers solved for what the original says, in the order of execution."""
    solvers = {weight: KernelSolver(one, LATER_SWEEPS) for weight, one in factors.items()}
    found = refit(
        written_out(network, factors),
        fitting.original,
        fitting.images,
        kept=fitting.kept,
        device=fitting.device,
        solvers=solvers,
    )
    return found.network, {weight: solver.shared for weight, solver in solvers.items()}
