"""PENNI: kernels shared by the channels of a layer, so that most of a convolution becomes a 1×1 convolution.

Li, Hanson, Li, Chen: PENNI, Pruned Kernel Sharing for Efficient CNN Inference (arXiv 2005.07133). Every k×k kernel of a
layer is a combination of a few kernels that the layer shares. Two things differ from the paper: what is pruned is whole
(input channel, kernel) columns, which an ordinary runtime does not compute at all, where the paper's single zeros need a
sparse one; and closed-form fits on images, labelled or not, take the place of most of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.budget import Constraint
from core.methods.method import Fitting, Rewriting, RewritingMethod, RewritingTask, RewrittenLayer
from core.network import Network
from core.penni.narrowing import keeps_all, narrow
from core.penni.reduction import ROUND_TO, Bases, Reduced, reduce_columns
from core.penni.rewriting import executable, fused, trainable
from core.penni.sites import sites
from core.penni.sparse import sparse_network_counts
from core.recovery.recalibration import Kept


@dataclass(frozen=True)
class PenniConfig:
    """unit: what is pruned. bases: shared kernels per layer, or "auto". energy: their share of the weight's squared norm, instead of a number.
    round_to: columns per layer are multiples of it."""

    unit: str = "column"
    bases: int | str = "auto"
    energy: float | None = None
    round_to: int = ROUND_TO

    @property
    def start(self) -> Bases:
        if self.energy is not None:
            return Bases(energy=self.energy)
        return Bases() if self.bases == "auto" else Bases(count=int(self.bases))


def rewrite(task: RewritingTask, config: PenniConfig) -> Rewriting:
    """Columns pruned onto the caps, fitted to the images where there are some."""
    reduced = reduce_columns(
        task.network,
        task.constraints,
        task.images,
        bases=config.start,
        round_to=config.round_to,
        nearest=task.nearest,
        device=task.device,
        progress=task.progress,
        steps=task.steps,
    )
    return _rewriting(reduced, {site.weight: site.outputs for site in sites(task.network)}, config.round_to)


def _rewriting(reduced: Reduced, widths: Mapping[str, int], round_to: int) -> Rewriting:
    """widths: the outputs that each layer had before, by its weight."""
    layers = reduced.layers

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
        delivered=lambda trained: executable(reduced.network, trained, layers),
        reference=lambda trained: fused(reduced.network, trained, layers),
        sparse=counts,
        narrowing=_Narrowing(reduced, widths, round_to),
    )


@dataclass(frozen=True, eq=False)
class _Narrowing:
    """A `core.methods.method.Narrowing`."""

    reduced: Reduced
    widths: Mapping[str, int]
    round_to: int

    def fits(self, pruned: Network, cut: Kept, constraints: Sequence[Constraint]) -> bool:
        return keeps_all(self.reduced, pruned, cut, constraints, self.round_to)

    def narrow(
        self, pruned: Network, cut: Kept, constraints: Sequence[Constraint], nearest: bool, fitting: Fitting | None
    ) -> Rewriting:
        found = narrow(self.reduced, pruned, cut, constraints, round_to=self.round_to, nearest=nearest, fitting=fitting)
        return _rewriting(found, self.widths, self.round_to)


def _note(report: dict[str, Any]) -> str:
    return (
        f"{report['two_stage_layers']} of {report['layers']} convolutions share kernels: {report['columns']:,} of "
        f"{report['columns_before']:,} (input channel, kernel) columns are left; the others stay dense, which costs less."
    )


METHOD = RewritingMethod(
    type="penni",
    title="Kernel sharing (PENNI)",
    description=(
        "Writes convolutions as a few kernels per layer and a 1×1 convolution, and removes the weakest (input channel, "
        "kernel) columns, down to the budget. Images make it far better; it does nothing for 1×1 and depthwise layers."
    ),
    paper="arXiv:2005.07133",
    options={
        "unit": {
            "type": "string",
            "enum": ["column"],
            "default": "column",
            "description": "What is pruned: whole (input channel, kernel) columns, which every runtime saves.",
        },
        "bases": {
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 1024}, {"type": "string", "const": "auto"}],
            "default": "auto",
            "description": "Shared kernels per layer before pruning; auto takes enough for the budget to decide.",
        },
        "energy": {
            "type": "number",
            "minimum": 0.01,
            "maximum": 1,
            "description": "Instead of a number: the fewest shared kernels that hold this share of the weights' square.",
        },
        "round_to": {
            "type": "integer",
            "minimum": 1,
            "maximum": 64,
            "default": ROUND_TO,
            "description": "Columns per layer are multiples of this; runtimes are slow on what is no multiple of 8 or 16.",
        },
    },
    config_type=PenniConfig,
    rewrite=rewrite,
)
