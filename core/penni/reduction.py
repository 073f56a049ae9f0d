"""Reduction: from a network to one of shared kernels within the caps, in closed forms only.

    decompose ── fit all columns ── [prune towards the caps ── fit the columns that are left] × 3 ── on the caps

Each fit goes through the layers in the order of execution, with inputs from the prefix that is compressed already and
targets from the original (`core.recovery.refit`, `core.penni.fitting`). Pruning goes in steps, because what a fit finds
after a small step ranks the columns of the next one better than the first ranking does. Without images there is nothing
to fit to: the singular vectors of the weights stand as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.budget import Constraint, Costs
from core.checkpoint import Saved
from core.errors import EngineError
from core.network import Network
from core.penni.bases import Bases
from core.penni.coefficients import CoefficientSearch
from core.penni.decomposition import SharedKernels, decompose
from core.penni.fitting import KernelSolver
from core.penni.rewriting import SharedLayer, trainable
from core.penni.search import ColumnSearch, Selection
from core.penni.shrinking import Kept
from core.penni.sites import Site, sites
from core.penni.slimming import Slim, slim
from core.progress import Progress, ProgressEvent, silent
from core.recovery.refit import refit
from core.recovery.steps import Steps

# Images with few channels have few columns, and all of them matter.
LEAST_INPUTS = 5
START_SWEEPS = 4
LATER_SWEEPS = 1
PRUNING_STEPS = 3
# What runtimes like: see `core.penni.search`.
ROUND_TO = 16
# How often the room that dead channels leave is filled with other columns.
_ROOM_TRIES = 3


STEP = "fit"
# (phase, network, costs of its delivered form).
Watch = Callable[[str, Network, Costs], None]
# From the trainable form of a network, and its layers with factors, to the same with other values.
Train = Callable[[Network, Iterable[SharedLayer]], Network]


@dataclass(frozen=True, eq=False)
class Reduced:
    """network: the original's graph, without channels that died, with the weights that the factors make.

    layers: those that run in two stages. costs: of the delivered form, exact. kept: what is left of the original's tensors
    that were cut. report: JSON on the way there. dense: layers with factors that are delivered as plain convolutions, of which
    there are some where single coefficients were pruned.
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


def reduce_columns(
    network: Network,
    constraints: Sequence[Constraint],
    images: Tensor | None,
    *,
    bases: Bases = Bases(),
    round_to: int = ROUND_TO,
    unit: str = "column",
    score: str = "magnitude",
    aims: Sequence[Constraint] = (),
    train: Train | None = None,
    nearest: bool = False,
    device: torch.device | str = "cpu",
    lossy: bool = False,
    progress: Progress = silent,
    steps: Steps | None = None,
    watch: Watch | None = None,
) -> Reduced:
    """Columns pruned until `network` meets `constraints` (dense counts). images: prepared inputs [n, …], or None.

    unit: "column", or "coefficient" for single ones (`core.penni.coefficients`), which `score` compares. aims: caps on the
    paper's count. train: takes the place of the closed-form fits, from the trainable form to the trained one. steps: where
    the fit is kept once it is done, and found by a run that goes on after it. lossy: take dead channels out where that
    changes what is computed at the borders of images. watch: told of every phase, with the network as it stands and what
    it costs. Raises EngineError("target_infeasible"), before any image is looked at, where the fewest columns exceed a
    cap; with `nearest` these are taken instead.
    """
    search = partial(_search, unit, round_to, score)
    program = _Program(network, constraints, aims, bases, search, unit, lossy, torch.device(device), progress, watch)
    selection = program.landed()
    if selection is None and not nearest:
        raise program.refusal()
    selection = selection or program.search.smallest
    if train is not None:
        selection = _fitted(lambda: program.trained(train), program, steps)
    elif images is not None:
        selection = _fitted(lambda: program.fitted(selection, images), program, steps)
    return program.reduced(selection, len(images) if images is not None else 0)


def _search(
    unit: str,
    round_to: int,
    score: str,
    network: Network,
    found: Sequence[Site],
    factors: Mapping[str, SharedKernels],
    caps: Sequence[Constraint],
    aims: Sequence[Constraint],
) -> ColumnSearch:
    if unit == "coefficient":
        return CoefficientSearch(network, found, factors, caps, aims, score)
    # Whole columns: what is counted by nonzeros is what any runtime executes.
    return ColumnSearch(network, found, factors, (*caps, *aims), round_to)


def _fitted(fit: Callable[[], Selection], program: _Program, steps: Steps | None) -> Selection:
    """The fit that an interrupted run had finished, or a new one."""
    kept = steps.finished(STEP) if steps is not None else None
    if kept is not None:
        return program.restored(kept)
    selection = fit()
    if steps is not None:
        steps.finish(STEP, *program.state(selection))
    return selection


def refusal(smallest: Costs, constraints: Sequence[Constraint], original: Costs) -> EngineError:
    """smallest: what the fewest columns cost."""
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
    """The state of one reduction: factors, the other tensors, and the search that they make."""

    def __init__(
        self,
        network: Network,
        constraints: Sequence[Constraint],
        aims: Sequence[Constraint],
        bases: Bases,
        search: Callable[..., ColumnSearch],
        unit: str,
        lossy: bool,
        device: torch.device,
        progress: Progress,
        watch: Watch | None,
    ) -> None:
        self._original = self._network = network
        self._constraints, self._aims = tuple(constraints), tuple(aims)
        self._search, self._unit, self._lossy = search, unit, lossy
        self._device, self._progress, self._watch = device, progress, watch
        self._sites: dict[str, Site] = {
            site.weight: site
            for site in sites(network, pointwise=unit == "coefficient")
            if site.inputs >= LEAST_INPUTS and site.outputs > 1
        }
        if not any(site.taps > 1 for site in self._sites.values()):
            raise EngineError(
                "target_infeasible",
                "The network has no convolution whose kernels could be shared: PENNI needs ordinary convolutions with "
                "more than one tap and at least 5 input channels. Use a method that removes channels (magnitude).",
                param="/methods/0/type",
            )
        bases.check(self._sites.values())
        self._factors, self.search = self._start(bases)
        self._steps: list[dict[str, Any]] = []

    def refusal(self) -> EngineError:
        """What the least that may be left costs, and which caps and aims that exceeds."""
        smallest = self.slim(self.search.smallest)
        costs = smallest.costs
        if not self._met(smallest, self._constraints, ()):
            return refusal(costs, self._constraints, self.search.original)
        reached = smallest.sparse
        said = ", ".join(f"{aim.metric} {getattr(reached, aim.metric):,} for {aim.limit:,}" for aim in self._aims)
        return EngineError(
            "target_infeasible",
            f"Counted by nonzeros, the least that may be left is {said}. Aim at more (sparse_params, sparse_macs).",
            param="/methods/0",
            details={"costs": self.search.original.as_dict(), "smallest": costs.as_dict()},
        )

    def fitted(self, selection: Selection, images: Tensor) -> Selection:
        """All columns fitted, then pruned and fitted in steps; the last step is on the caps."""
        everything = self.search.everything
        self._seen("singular vectors", everything)
        self._fit(selection, images, START_SWEEPS, "Fitting shared kernels")
        self._seen("fitted", everything)
        full, planned = everything, selection
        for step in range(1, PRUNING_STEPS + 1):
            self.search = self._searching()
            # Columns that died in the fit may have made room. Where this step's caps are out of reach, the fewest columns,
            # and in the end those that were planned without images.
            if step < PRUNING_STEPS:
                share = step / PRUNING_STEPS
                caps = [_between(cap, full.costs, share) for cap in self._constraints]
                aims = [_between(aim, full.sparse or full.costs, share) for aim in self._aims]
                selection = self._land(caps, aims) or self.search.smallest
            else:
                selection = self.landed() or planned
            self._prune(selection)
            self._seen(f"pruned, step {step}", selection)
            self._fit(selection, images, LATER_SWEEPS, f"Fitting what is left, step {step} of {PRUNING_STEPS}")
            self._seen(f"fitted, step {step}", selection)
        return selection

    def trained(self, train: Train) -> Selection:
        """All factors trained as the parameters that they are, then pruned in one step."""
        everything = self.search.everything
        self._seen("singular vectors", everything)
        layers = {
            SharedLayer.of(site, self._factors[weight]): self._factors[weight] for weight, site in self._sites.items()
        }
        found = train(trainable(self._network, layers), layers)
        self._factors = {layer.site.weight: layer.factors(found.tensors).normalised() for layer in layers}
        self._network = self._network.with_tensors(
            {name: found.tensors.get(name, tensor) for name, tensor in self._network.tensors.items()}
        )
        self.search = self._searching()
        self._seen("retrained", self.search.everything)
        selection = self.landed() or self.search.smallest
        self._prune(selection)
        self._seen("pruned", selection)
        return selection

    def state(self, selection: Selection) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Values and tensors of everything that a fit has found."""
        tensors = {f"network/{name}": tensor for name, tensor in self._network.tensors.items()}
        tensors |= {f"live/{weight}": mask for weight, mask in selection.live.items()}
        tensors |= {f"dense/{weight}": mask for weight, mask in selection.dense.items()}
        for weight, factors in self._factors.items():
            tensors |= {f"coefficients/{weight}": factors.coefficients, f"basis/{weight}": factors.basis}
        return {"steps": self._steps}, tensors

    def restored(self, kept: Saved) -> Selection:
        """Take up what `state` gave, in place of a fit."""
        parts: dict[str, dict[str, Tensor]] = {"live": {}, "dense": {}}
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
        return self.search.exact(Selection(parts["live"], self.search.original, parts["dense"]))

    def slim(self, selection: Selection) -> Slim:
        """What would be delivered of this selection."""
        kept = {name: self._factors[name].with_columns(mask) for name, mask in selection.masks.items()}
        return slim(self._network, kept, selection.live, lossy=self._lossy)

    def landed(self) -> Selection | None:
        """The most within caps and aims, counted without the channels that die with the others; None if out of reach."""
        selection = self._land(self._constraints, self._aims)
        if selection is None:
            fewest = self.search.smallest
            return fewest if self._met(self.slim(fewest), self._constraints, self._aims) else None
        for _ in range(_ROOM_TRIES):
            counted, left = self.search.exact(selection).costs, self.slim(selection)
            room = [_scaled(cap, counted, left.costs) for cap in self._constraints]
            aims = self._aims
            if selection.sparse is not None and aims:
                aims = [_scaled(aim, selection.sparse, replace(left.costs, **vars(left.sparse))) for aim in aims]
            if [*room, *aims] == [*self._constraints, *self._aims]:
                break
            more = self._land(room, aims)
            if more is None or not self._met(self.slim(more), self._constraints, self._aims):
                break
            selection = more
        return selection

    def _land(self, caps: Sequence[Constraint], aims: Sequence[Constraint]) -> Selection | None:
        if isinstance(self.search, CoefficientSearch):
            return self.search.land(caps, aims)
        return self.search.land([*caps, *aims])

    @staticmethod
    def _met(found: Slim, caps: Sequence[Constraint], aims: Sequence[Constraint]) -> bool:
        return all(cap.met_by(found.costs) for cap in caps) and (
            not aims or all(aim.met_by(replace(found.costs, **vars(found.sparse))) for aim in aims)
        )

    def _prune(self, selection: Selection) -> None:
        for weight, mask in selection.masks.items():
            self._factors[weight] = self._factors[weight].with_columns(mask)

    def reduced(self, selection: Selection, examples: int) -> Reduced:
        found = self.slim(selection)
        kept = sum(layer.columns for layer in found.staged)
        whole = sum(self._sites[weight].inputs * self._factors[weight].kernels for weight in selection.live)
        report = {
            "unit": self._unit,
            "layers": len(self._sites),
            "two_stage_layers": len(found.staged),
            "columns": kept,
            "columns_before": whole,
            "kernels": {layer.site.path: layer.shared for layer in found.staged},
            "dead_channels": dict(found.dead),
            "fit": {"examples": examples, "steps": self._steps},
        }
        if self._unit == "coefficient":
            report["nonzeros"] = sum(factors.nonzeros for factors in found.layers.values())
            report["coefficients"] = sum(self._factors[weight].coefficients.numel() for weight in self._sites)
        if self._aims:
            report["aims"] = [
                {"metric": aim.metric, "limit": aim.limit, "value": getattr(found.sparse, aim.metric)}
                for aim in self._aims
            ]
        return Reduced(found.network, found.staged, found.costs, found.kept, report, found.dense)

    def _seen(self, phase: str, selection: Selection) -> None:
        if self._watch is not None:
            self._watch(phase, self._written(selection), selection.costs)

    def _start(self, bases: Bases) -> tuple[dict[str, SharedKernels], ColumnSearch]:
        """The decompositions; enough shared kernels that the caps, and not their number, decide what is left.

        What is counted by parameters alone wants single coefficients of all the kernels that there are: turning them
        costs nothing, and truncating saves no more than pruning does.
        """
        counted = {limit.metric for limit in (*self._constraints, *self._aims)}
        whole = self._unit == "coefficient" and not counted & {"macs", "flops"}
        for share in bases.shares(whole=whole):
            self._factors = {}
            for weight, site in self._sites.items():
                tensor = self._original.tensors[weight]
                self._factors[weight] = decompose(tensor, bases.kernels(site, tensor, share))
            search = self._searching()
            if not search.everything.meets((*self._constraints, *self._aims)):
                break
        return self._factors, search

    def _searching(self) -> ColumnSearch:
        return self._search(self._original, list(self._sites.values()), self._factors, self._constraints, self._aims)

    def _written(self, selection: Selection) -> Network:
        """Factors written out where a layer has a share in them; elsewhere its own weight."""
        chosen = selection.masks
        return self._network.with_tensors(
            {
                name: self._factors[name].weight() if name in chosen else tensor
                for name, tensor in self._network.tensors.items()
            }
        )

    def _fit(self, selection: Selection, images: Tensor, sweeps: int, message: str) -> None:
        """One pass over the layers. Layers that are dense at this point are refitted as they are, from the original."""
        self._progress(ProgressEvent("apply", message=message))
        chosen = selection.masks
        start = self._original.with_tensors(
            {
                name: self._factors[name].weight() if name in chosen else tensor
                for name, tensor in self._original.tensors.items()
            }
        )
        solvers = {weight: KernelSolver(self._factors[weight], sweeps) for weight in chosen}
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


def _scaled(cap: Constraint, counted: Costs, left: Costs) -> Constraint:
    """The limit that a count with the dead channels may have, for the one without them to reach the cap."""
    return replace(cap, limit=max(cap.limit, math.floor(cap.limit * cap.value(counted) / max(1, cap.value(left)))))


def _between(cap: Constraint, full: Costs, share: float) -> Constraint:
    """A cap this far on the way from what all columns cost."""
    start = max(cap.limit, cap.value(full))
    return replace(cap, limit=math.floor(start + (cap.limit - start) * share))
