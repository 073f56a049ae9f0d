"""The state of one reduction: factors, the other tensors, and the search that they make (`core.penni.reduction`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from core.analysis import profile
from core.budget import Costs
from core.checkpoint import Saved
from core.errors import EngineError
from core.network import Network
from core.penni.bases import Bases
from core.penni.decomposition import SharedKernels, decompose
from core.penni.fitting import KernelSolver
from core.penni.landing import landed
from core.penni.pace import steps_onto
from core.penni.pruning import Pruning
from core.penni.reduced import Reduced, forms, reached, refusal
from core.penni.rewriting import SharedLayer, trainable, valued, written_out
from core.penni.search import ColumnSearch, Selection
from core.penni.slimming import Slim, slim
from core.planning import safetensors_bytes
from core.progress import Progress, ProgressEvent
from core.recovery.refit import refit

START_SWEEPS = 4
LATER_SWEEPS = 1

# (phase, network, costs of its delivered form).
Watch = Callable[[str, Network, Costs], None]
# From the trainable form of a network, and its layers with factors, to the same with other values.
Train = Callable[[Network, Iterable[SharedLayer]], Network]


class Program:
    """`network` under one `Pruning`. Raises EngineError where it has no kernels to share."""

    def __init__(
        self, network: Network, pruning: Pruning, device: torch.device, progress: Progress, watch: Watch | None
    ) -> None:
        self._original = self._network = network
        self._pruning = pruning
        self._device, self._progress, self._watch = device, progress, watch
        self._sites = pruning.sites(network)
        wide = [site for site in self._sites.values() if site.taps > 1]
        if not (self._sites if pruning.unit == "column" else wide):
            raise EngineError(
                "target_infeasible",
                "The network has no convolution whose kernels could be shared: PENNI needs ordinary convolutions with "
                "at least 5 input channels, and more than one tap where the unit is the coefficient. Use a method that "
                "removes channels (magnitude).",
                param="/methods/0/type",
            )
        pruning.bases.check(wide)
        self._costs = replace(profile(network).costs, size_bytes=safetensors_bytes(network))
        self._losses: dict[str, Tensor] = {}
        self._factors, self.search = self._start()
        self._steps: list[dict[str, Any]] = []

    def refusal(self) -> EngineError:
        """What the least that may be left costs, and which caps and aims that exceeds."""
        return refusal(self.slim(self.search.smallest), self._pruning, self.search.original)

    def fitted(self, selection: Selection, images: Tensor) -> Selection:
        """All columns fitted, then pruned and fitted in steps; the last step is on the caps."""
        everything = self.search.everything
        self._seen("singular vectors", everything)
        self._fit(selection, images, START_SWEEPS, "Fitting shared kernels")
        self._seen("fitted", everything)
        planned = selection
        caps = [(cap, everything.costs) for cap in self._pruning.constraints]
        aims = [(aim, everything.counted) for aim in self._pruning.aims]
        steps = steps_onto([*caps, *aims])
        for step in range(1, steps + 1):
            self.search = self._searching(self._factors)
            # Columns that died in the fit may have made room. Where this step's caps are out of reach, the fewest
            # columns, and in the end those that were planned without images.
            if step < steps:
                now, aimed = ([cap.on_the_way(costs, step / steps) for cap, costs in limits] for limits in (caps, aims))
                selection = self.search.land(now, aimed) or self.search.smallest
            else:
                selection = self.landed() or planned
            self._prune(selection)
            self._seen(f"pruned, step {step}", selection)
            self._fit(selection, images, LATER_SWEEPS, f"Fitting what is left, step {step} of {steps}")
            self._seen(f"fitted, step {step}", selection)
        return self._still_landed(selection)

    def trained(self, train: Train) -> Selection:
        """All factors trained as the parameters that they are, then pruned in one step."""
        everything = self.search.everything
        self._seen("singular vectors", everything)
        layers = {
            SharedLayer.of(site, self._factors[weight]): self._factors[weight] for weight, site in self._sites.items()
        }
        found = train(trainable(self._network, layers), layers)
        self._factors = {layer.site.weight: layer.factors(found.tensors).normalised() for layer in layers}
        self._network = valued(self._network, found)
        self.search = self._searching(self._factors)
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
        self.search = self._searching(self._factors)
        return self.search.exact(Selection(parts["live"], self.search.original, parts["dense"]))

    def slim(self, selection: Selection) -> Slim:
        """What would be delivered of this selection."""
        kept = {name: self._factors[name].with_columns(mask) for name, mask in selection.masks.items()}
        return slim(self._network, kept, selection.live, lossy=self._pruning.lossy)

    def landed(self) -> Selection | None:
        """The most within caps and aims (`core.penni.landing`); None if out of reach."""
        return landed(self.search, self.slim, self._pruning)

    def _still_landed(self, selection: Selection) -> Selection:
        """What a fit left: a channel that said nothing may say a number now, and then it stays."""
        if self.slim(selection).meets(self._pruning.constraints, self._pruning.aims):
            return selection
        self.search = self._searching(self._factors)
        again = self.landed()
        if again is None:
            return selection
        self._prune(again)
        return again

    def _prune(self, selection: Selection) -> None:
        for weight, mask in selection.masks.items():
            self._factors[weight] = self._factors[weight].with_columns(mask)

    def reduced(self, selection: Selection, examples: int) -> Reduced:
        found = self.slim(selection)
        whole = sum(self._factors[weight].pieces * self._factors[weight].kernels for weight in selection.live)
        report = {
            "unit": self._pruning.unit,
            "layers": len(self._sites),
            **forms(found),
            "columns_before": whole,
            "dead_channels": dict(found.dead),
            "fit": {"examples": examples, "steps": self._steps},
        }
        if self._pruning.unit == "coefficient":
            report["nonzeros"] = sum(factors.nonzeros for factors in found.layers.values())
            report["coefficients"] = sum(self._factors[weight].coefficients.numel() for weight in self._sites)
        if self._pruning.aims:
            report["aims"] = reached(self._pruning.aims, found)
        return Reduced(found.network, found.staged, found.costs, found.kept, report, found.dense)

    def _seen(self, phase: str, selection: Selection) -> None:
        if self._watch is not None:
            self._watch(phase, written_out(self._network, self._chosen(selection)), selection.costs)

    def _start(self) -> tuple[dict[str, SharedKernels], ColumnSearch]:
        """The decompositions; enough shared kernels that the caps, and not their number, decide what is left."""
        bases, whole, low_rank = self._pruning.bases, self._pruning.whole_kernels, self._low_rank()
        if all(limit.met_by(self._costs) for limit in self._pruning.limits):
            # What is within its caps stays as it is, however few kernels the request names: all of them are exact.
            bases, whole, low_rank = Bases(), True, {}
        for share in bases.shares(whole=whole):
            factors = {}
            for weight, site in self._sites.items():
                tensor = self._original.tensors[weight]
                factors[weight] = low_rank.get(weight) or decompose(tensor, bases.kernels(site, tensor, share))
            search = self._searching(factors)
            if not search.everything.meets(self._pruning.limits):
                break
        return factors, search

    def _low_rank(self) -> dict[str, SharedKernels]:
        """The layers whose kernels lie over all inputs."""
        found = {}
        for weight, site in self._sites.items():
            tensor = self._original.tensors[weight]
            rank = self._pruning.rank(site, tensor, self._costs)
            if rank is not None:
                found[weight] = decompose(tensor, rank, span=site.inputs)
        return found

    def _searching(self, factors: Mapping[str, SharedKernels]) -> ColumnSearch:
        return self._pruning.search(self._original, list(self._sites.values()), factors, self._losses)

    def _chosen(self, selection: Selection) -> dict[str, SharedKernels]:
        """The factors of the layers that have a share in a selection; the others stay as they are."""
        return {weight: self._factors[weight] for weight in selection.masks}

    def _fit(self, selection: Selection, images: Tensor, sweeps: int, message: str) -> None:
        """One pass over the layers. Layers that are dense at this point are refitted as they are, from the original."""
        self._progress(ProgressEvent("apply", message=message))
        chosen = self._chosen(selection)
        start = written_out(self._original, chosen)
        judging = self._pruning.unit == "column"
        solvers = {weight: KernelSolver(factors, sweeps, judging=judging) for weight, factors in chosen.items()}
        found = refit(start, self._original, images, kept={}, device=self._device, solvers=solvers)
        self._network = found.network
        for weight, solver in solvers.items():
            self._factors[weight] = solver.shared
            # What was worth something before the fit says nothing of what came of it.
            self._losses.pop(weight, None)
            if solver.losses is not None:
                self._losses[weight] = solver.losses
        errors = [after for _, after in found.layers.values()]
        self._steps.append(
            {
                "columns": sum(int(factors.live.sum()) for name, factors in self._factors.items() if name in solvers),
                "macs": selection.costs.macs,
                "mean_error": round(sum(errors) / max(1, len(errors)), 4),
            }
        )
