"""Reduction: from a network to one of shared kernels within the caps, in closed forms only.

    decompose ── fit all columns ── [prune towards the caps ── fit the columns that are left] × 3 ── on the caps

Each fit goes through the layers in the order of execution, with inputs from the prefix that is compressed already and
targets from the original (`core.recovery.refit`, `core.penni.fitting`). Pruning goes in steps, because what a fit finds
after a small step ranks the columns of the next one better than the first ranking does. Without images there is nothing
to fit to: the singular vectors of the weights stand as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.budget import Constraint, Costs
from core.checkpoint import Saved
from core.errors import EngineError
from core.network import Network
from core.penni.decomposition import SharedKernels, decompose, kernels_for_energy
from core.penni.fitting import KernelSolver
from core.penni.rewriting import SharedLayer
from core.penni.search import ColumnSearch, Selection, shared_layers
from core.penni.sites import Site, sites
from core.progress import Progress, ProgressEvent, silent
from core.recovery.refit import refit
from core.recovery.steps import Steps

# Of a kernel's taps: 5 shared kernels for 3×3.
_FIRST_SHARE = 5 / 9
# Images with few channels have few columns, and all of them matter.
LEAST_INPUTS = 5
START_SWEEPS = 4
LATER_SWEEPS = 1
PRUNING_STEPS = 3
# What runtimes like: see `core.penni.search`.
ROUND_TO = 16


STEP = "fit"
# (phase, network, costs of its delivered form).
Watch = Callable[[str, Network, Costs], None]


@dataclass(frozen=True)
class Bases:
    """How many shared kernels a layer starts with: a number, the fewest that hold an `energy`, or enough for the caps."""

    count: int | None = None
    energy: float | None = None


@dataclass(frozen=True, eq=False)
class Reduced:
    """network: the original's graph with the weights that the factors make. layers: those that run in two stages.

    costs: of the delivered form, exact. report: JSON on the way there.
    """

    network: Network
    layers: Mapping[SharedLayer, SharedKernels]
    costs: Costs
    report: dict[str, Any]


def reduce_columns(
    network: Network,
    constraints: Sequence[Constraint],
    images: Tensor | None,
    *,
    bases: Bases = Bases(),
    round_to: int = ROUND_TO,
    nearest: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    steps: Steps | None = None,
    watch: Watch | None = None,
) -> Reduced:
    """Columns pruned until `network` meets `constraints` (dense counts). images: prepared inputs [n, …], or None.

    Raises EngineError("target_infeasible"), before any image is looked at, where the fewest columns exceed a cap; with
    `nearest` these are taken instead. steps: where the fit is kept once it is done, and found by a run that goes on after
    it. watch: told of every phase, with the network as it stands and what it costs.
    """
    program = _Program(network, constraints, bases, round_to, torch.device(device), progress, watch)
    selection = program.search.land()
    if selection is None and not nearest:
        raise refusal(program.search, constraints, program.network_costs)
    selection = selection or program.search.smallest
    if images is not None:
        selection = _fitted(program, selection, images, steps)
    return program.reduced(selection, len(images) if images is not None else 0)


def _fitted(program: _Program, selection: Selection, images: Tensor, steps: Steps | None) -> Selection:
    """The fit that an interrupted run had finished, or a new one."""
    kept = steps.finished(STEP) if steps is not None else None
    if kept is not None:
        return program.restored(kept)
    selection = program.fitted(selection, images)
    if steps is not None:
        steps.finish(STEP, *program.state(selection))
    return selection


def refusal(search: ColumnSearch, constraints: Sequence[Constraint], original: Costs) -> EngineError:
    """What the fewest columns cost."""
    smallest = search.exact(search.smallest).costs
    missed = [cap for cap in constraints if not cap.met_by(smallest)]
    said = ", ".join(f"{cap.metric} {cap.value(smallest):,} where {cap.limit:,} is the limit" for cap in missed)
    return EngineError(
        "target_infeasible",
        f"Shared kernels alone reach no less than {said}. Raise the cap, or use a method that removes channels "
        "(magnitude).",
        param=f"/budget/{missed[0].metric}",
        details={
            "costs": original.as_dict(),
            "smallest": smallest.as_dict(),
            "constraints": [cap.as_dict(smallest) for cap in constraints],
        },
    )


class _Program:
    def __init__(
        self,
        network: Network,
        constraints: Sequence[Constraint],
        bases: Bases,
        round_to: int,
        device: torch.device,
        progress: Progress,
        watch: Watch | None,
    ) -> None:
        self._original = network
        self._watch = watch
        self._network = network
        self._constraints = tuple(constraints)
        self._round_to = round_to
        self._device = device
        self._progress = progress
        self._sites: dict[str, Site] = {
            site.weight: site for site in sites(network) if site.inputs >= LEAST_INPUTS and site.outputs > 1
        }
        if not self._sites:
            raise EngineError(
                "target_infeasible",
                "The network has no convolution whose kernels could be shared: PENNI needs ordinary convolutions with "
                "more than one tap and at least 5 input channels. Use a method that removes channels (magnitude).",
                param="/methods/0/type",
            )
        self._factors, self.search = self._start(bases)
        self._steps: list[dict[str, Any]] = []

    @property
    def network_costs(self) -> Costs:
        return self.search.original

    def fitted(self, selection: Selection, images: Tensor) -> Selection:
        """All columns fitted, then pruned and fitted in steps; the last step is on the caps."""
        everything = self.search.everything
        self._seen("singular vectors", everything)
        self._fit(selection, images, START_SWEEPS, "Fitting shared kernels")
        self._seen("fitted", everything)
        full = everything.costs
        for step in range(1, PRUNING_STEPS + 1):
            self.search = self._searching()
            caps = [_between(cap, full, step / PRUNING_STEPS) for cap in self._constraints]
            # Columns that died in the fit may have made room. Where this step's caps are out of reach, the fewest columns.
            selection = self.search.land(caps) or self.search.smallest
            for weight, mask in selection.live.items():
                self._factors[weight] = self._factors[weight].with_columns(mask)
            self._seen(f"pruned, step {step}", selection)
            self._fit(selection, images, LATER_SWEEPS, f"Fitting what is left, step {step} of {PRUNING_STEPS}")
            self._seen(f"fitted, step {step}", selection)
        return selection

    def state(self, selection: Selection) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Values and tensors of everything that a fit has found."""
        tensors = {f"network/{name}": tensor for name, tensor in self._network.tensors.items()}
        tensors |= {f"live/{weight}": mask for weight, mask in selection.live.items()}
        for weight, factors in self._factors.items():
            tensors |= {f"coefficients/{weight}": factors.coefficients, f"basis/{weight}": factors.basis}
        return {"steps": self._steps}, tensors

    def restored(self, kept: Saved) -> Selection:
        """Take up what `state` gave, in place of a fit."""
        parts: dict[str, dict[str, Tensor]] = {"live": {}}
        for name, tensor in kept.tensors.items():
            part, _, own = name.partition("/")
            parts.setdefault(part, {})[own] = tensor
        self._steps = list(kept.values["steps"])
        self._network = self._network.with_tensors(parts["network"])
        self._factors = {
            weight: replace(factors, coefficients=parts["coefficients"][weight], basis=parts["basis"][weight])
            for weight, factors in self._factors.items()
        }
        self.search = self._searching()
        return self.search.exact(Selection(parts["live"], self.search.original))

    def reduced(self, selection: Selection, examples: int) -> Reduced:
        layers = shared_layers(self._sites, self._factors, selection.live)
        network = self._written(selection)
        kept = sum(layer.columns for layer in layers)
        whole = sum(layer.site.inputs * self._factors[layer.site.weight].kernels for layer in layers)
        report = {
            "unit": "column",
            "layers": len(self._sites),
            "two_stage_layers": len(layers),
            "columns": kept,
            "columns_before": whole,
            "kernels": {layer.site.path: layer.shared for layer in layers},
            "fit": {"examples": examples, "steps": self._steps},
        }
        return Reduced(network, layers, self.search.exact(selection).costs, report)

    def _seen(self, phase: str, selection: Selection) -> None:
        if self._watch is not None:
            self._watch(phase, self._written(selection), selection.costs)

    def _start(self, bases: Bases) -> tuple[dict[str, SharedKernels], ColumnSearch]:
        """The decompositions; enough shared kernels that the caps, and not their number, decide what is left."""
        shares = [_FIRST_SHARE, 6 / 9, 7 / 9, 8 / 9, 1.0] if bases == Bases() else [_FIRST_SHARE]
        for share in shares:
            self._factors = {
                weight: decompose(self._original.tensors[weight], self._count(site, bases, share))
                for weight, site in self._sites.items()
            }
            search = self._searching()
            everything = search.everything
            if not everything.meets(self._constraints):
                break
        return self._factors, search

    def _count(self, site: Site, bases: Bases, share: float) -> int:
        most = min(site.taps, site.outputs * site.inputs)
        if bases.count is not None:
            return min(most, bases.count)
        if bases.energy is not None:
            return kernels_for_energy(self._original.tensors[site.weight], bases.energy)
        return max(1, min(most, math.ceil(site.taps * share - 1e-9)))

    def _searching(self) -> ColumnSearch:
        return ColumnSearch(
            self._original, list(self._sites.values()), self._factors, self._constraints, self._round_to
        )

    def _written(self, selection: Selection) -> Network:
        """Factors written out where a layer runs in two stages; elsewhere its own weight."""
        tensors = dict(self._network.tensors)
        for weight in self._sites:
            if weight in selection.live:
                tensors[weight] = self._factors[weight].weight()
        return self._network.with_tensors(tensors)

    def _fit(self, selection: Selection, images: Tensor, sweeps: int, message: str) -> None:
        """One pass over the layers. Layers that are dense at this point are refitted as they are, from the original."""
        self._progress(ProgressEvent("apply", message=message))
        start = self._original.with_tensors(
            {
                name: self._factors[name].weight() if name in selection.live else tensor
                for name, tensor in self._original.tensors.items()
            }
        )
        solvers = {weight: KernelSolver(self._factors[weight], sweeps) for weight in selection.live}
        found = refit(start, self._original, images, kept={}, device=self._device, solvers=solvers)
        self._network = found.network
        for weight, solver in solvers.items():
            self._factors[weight] = solver.shared
        errors = [after for _, after in found.layers.values()]
        self._steps.append(
            {
                "columns": sum(int(factors.live.sum()) for name, factors in self._factors.items() if name in solvers),
                "macs": selection.costs.macs,
                "mean_error": round(sum(errors) / max(1, len(errors)), 4),
            }
        )


def _between(cap: Constraint, full: Costs, share: float) -> Constraint:
    """A cap this far on the way from what all columns cost."""
    start = max(cap.limit, cap.value(full))
    return replace(cap, limit=math.floor(start + (cap.limit - start) * share) if share < 1 else cap.limit)
