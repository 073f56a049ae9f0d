"""What a reduction comes to: a network of shared kernels, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.budget import Constraint, Costs
from core.errors import EngineError
from core.network import Network
from core.penni.decomposition import SharedKernels
from core.penni.pruning import Pruning
from core.penni.rewriting import SharedLayer
from core.penni.slimming import Slim
from core.recovery.recalibration import Kept


@dataclass(frozen=True, eq=False)
class Reduced:
    """network: the original's graph, without channels that died, with the weights that the factors make.

    layers: those that run in two stages. costs: of the delivered form, exact. kept: what is left of the original's
    tensors that were cut. report: JSON on the way there. dense: layers with factors that are delivered as plain
    convolutions, of which there are some where single coefficients were pruned.
    """

    network: Network
    layers: Mapping[SharedLayer, SharedKernels]
    costs: Costs
    kept: Kept
    report: dict[str, Any]
    dense: Mapping[SharedLayer, SharedKernels] = field(default_factory=dict)

    @property
    def shared(self) -> dict[SharedLayer, SharedKernels]:
        """Every layer with factors."""
        return {**self.layers, **self.dense}


def forms(found: Slim) -> dict[str, Any]:
    """For the report: in which form each layer with factors is delivered, and what is left of its kernels."""
    form = {layer.site.path: "low_rank" if layer.low_rank else "two_stage" for layer in found.staged}
    form |= {layer.site.path: "dense" for layer in found.dense}
    named = list(form.values())
    return {
        "forms": {layer.site.path: form[layer.site.path] for layer in found.layers},
        "two_stage_layers": named.count("two_stage"),
        "low_rank_layers": named.count("low_rank"),
        "columns": sum(layer.columns for layer in found.staged),
        "kernels": {layer.site.path: layer.shared for layer in found.staged},
    }


def reached(aims: Sequence[Constraint], found: Slim) -> list[dict[str, Any]]:
    """For the report: each cap on the paper's count, and what is delivered by that count."""
    sparse = found.sparse
    return [{"metric": aim.metric, "limit": aim.limit, "value": aim.value(sparse)} for aim in aims]


def refusal(smallest: Slim, pruning: Pruning, original: Costs) -> EngineError:
    """smallest: what would be delivered of the fewest columns. original: what the network costs as it came."""
    costs = smallest.costs
    details = {"costs": original.as_dict(), "smallest": costs.as_dict()}
    missed = [cap for cap in pruning.constraints if not cap.met_by(costs)]
    if missed:
        said = ", ".join(f"{cap.metric} {cap.value(costs):,} where {cap.limit:,} is the limit" for cap in missed)
        return EngineError(
            "target_infeasible",
            f"Shared kernels alone reach no less than {said}. Raise the cap, or use a method that removes channels "
            "(magnitude).",
            param=f"/budget/{missed[0].metric}",
            details={**details, "constraints": [cap.as_dict(costs) for cap in pruning.constraints]},
        )
    said = ", ".join(
        f"{aim['metric']} {aim['value']:,} for {aim['limit']:,}" for aim in reached(pruning.aims, smallest)
    )
    return EngineError(
        "target_infeasible",
        f"Counted by nonzeros, the least that may be left is {said}. Aim at more (sparse_params, sparse_macs).",
        param="/methods/0",
        details=details,
    )
