"""PENNI: kernels shared by the channels of a layer, so that most of a convolution becomes a 1×1 convolution.

Li, Hanson, Li, Chen: PENNI, Pruned Kernel Sharing for Efficient CNN Inference (arXiv 2005.07133). Every k×k kernel of a
layer is a combination of a few kernels that the layer shares. Two things differ from the paper by default: what is
pruned is whole (input channel, kernel) columns, which an ordinary runtime does not compute at all, where the paper's
single zeros need a sparse one; and closed-form fits on images, labelled or not, take the place of most of the training.
The paper's own unit, count and training are options (`core.penni.options`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.budget import Constraint
from core.methods.method import Fitting, Rewriting, RewritingMethod, RewritingTask, RewrittenLayer
from core.network import Network
from core.penni.narrowing import keeps_all, narrow
from core.penni.options import OPTIONS, PenniConfig
from core.penni.pruning import Pruning
from core.penni.reduced import Reduced
from core.penni.reduction import reduce_columns
from core.penni.retraining import Alternating
from core.penni.rewriting import fused, trainable
from core.penni.sites import sites
from core.penni.slimming import deliver
from core.penni.sparse import sparse_network_counts
from core.recovery.recalibration import Kept


def rewrite(task: RewritingTask, config: PenniConfig) -> Rewriting:
    """What `config` prunes, onto the caps and aims; fitted to images or trained by labels where there are some."""
    recipe, train = config.alternation, None
    if recipe is not None and task.dataset is not None:
        train = Alternating(task.network, task.dataset, recipe, task.seed, task.device, task.progress)
    pruning = config.pruning(task.constraints, task.original)
    reduced = reduce_columns(
        task.network,
        pruning.eased(task.original, task.share),
        task.images,
        train=train,
        nearest=task.nearest,
        device=task.device,
        progress=task.progress,
        steps=task.steps,
    )
    widths = {site.weight: site.outputs for site in sites(task.network, pointwise=True)}
    return _rewriting(reduced, widths, pruning)


def _rewriting(reduced: Reduced, widths: Mapping[str, int], pruning: Pruning) -> Rewriting:
    """widths: the outputs that each layer had before, by its weight. pruning: with its aims in full."""
    layers = reduced.shared

    def counts(trained: Network) -> dict[str, int]:
        return sparse_network_counts(reduced.network, trained, layers)

    return Rewriting(
        network=trainable(reduced.network, layers),
        predicted=reduced.costs,
        layers=tuple(
            RewrittenLayer(layer.site.path, widths[layer.site.weight], layer.site.outputs, layer.site.node)
            for layer in layers
        ),
        kept=reduced.kept,
        note=_note(reduced.report),
        report=reduced.report,
        delivered=lambda trained: deliver(reduced.network, trained, reduced.layers, reduced.dense),
        reference=lambda trained: fused(reduced.network, trained, layers),
        sparse=counts,
        narrowing=_Narrowing(reduced, widths, pruning),
    )


@dataclass(frozen=True, eq=False)
class _Narrowing:
    """A `core.methods.method.Narrowing`."""

    reduced: Reduced
    widths: Mapping[str, int]
    pruning: Pruning

    @property
    def aims(self) -> tuple[Constraint, ...]:
        return tuple(self.pruning.aims)

    def fits(self, pruned: Network, cut: Kept, constraints: Sequence[Constraint]) -> bool:
        return keeps_all(self.reduced, pruned, cut, replace(self.pruning, constraints=constraints))

    def narrow(
        self, pruned: Network, cut: Kept, constraints: Sequence[Constraint], nearest: bool, fitting: Fitting | None
    ) -> Rewriting:
        pruning = replace(self.pruning, constraints=constraints)
        found = narrow(self.reduced, pruned, cut, pruning, nearest=nearest, fitting=fitting)
        return _rewriting(found, self.widths, self.pruning)


def _note(report: dict[str, Any]) -> str:
    if report["unit"] == "coefficient":
        return (
            f"{report['nonzeros']:,} of {report['coefficients']:,} coefficients are left; "
            f"{report['two_stage_layers']} of {report['layers']} convolutions run in two stages, the others cost less "
            "as the plain convolutions that their coefficients make."
        )
    return (
        f"{report['two_stage_layers']} of {report['layers']} convolutions run in two stages, "
        f"{report['low_rank_layers']} as chains of low rank: {report['columns']:,} of {report['columns_before']:,} "
        "columns of shared kernels are left; the others stay dense, which costs less."
    )


METHOD = RewritingMethod(
    type="penni",
    title="Kernel sharing (PENNI)",
    description=(
        "Writes convolutions as a few kernels per layer and a 1×1 convolution, and removes the weakest (input channel, "
        "kernel) columns, down to the budget; 1×1 layers become chains of low rank. Images make it far better."
    ),
    paper="arXiv:2005.07133",
    options=OPTIONS,
    config_type=PenniConfig,
    rewrite=rewrite,
    by_labels=lambda config: "recipe" if config.recipe == "paper" else None,
)
