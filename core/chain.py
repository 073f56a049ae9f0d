"""A chain of two methods: channels leave, and what is left shares kernels; in either order, onto one budget.

    channels first   plan widths half of the way ── cut ── refit ── rewrite onto the caps
    kernels first    rewrite half of the way ── plan widths of the written-out network ── cut both ── land on the caps

Half of the way is the geometric mean of what a network costs and what it may cost, so that both methods take the same
share of what is there. Where the first half is out of one method's reach the other takes more. The caps are reached by
exact counts of the delivered form in both orders. Each cut is proven against its masked reference, each rewritten layer
against the plain convolution with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from core.analysis import profile
from core.budget import Constraint, Costs
from core.choice import Choice, Chooser
from core.cut import Cut
from core.errors import EngineError
from core.methods import RewritingMethod, get_method
from core.methods.method import Fitting, Rewriting, RewritingTask
from core.network import Network
from core.origin import Origin
from core.penni.shrinking import compose
from core.planning import PlannedLayer, safetensors_bytes
from core.recovery import ImageDataset
from core.recovery.refit import refit
from core.request import CompressionRequest
from core.rewriting import Rewriter, Work, binding_note, most_used, option_errors_at

# How far channels go before kernels are shared, as an exponent between what a network costs and its cap.
_SHARES = (0.5, 0.75, 1.0)
# Steps of the bisection that finds how many channels have to go after kernels are shared.
_WIDTH_TRIES = 8


class Chain(Rewriter):
    """The two methods of a request; used like a `Rewriter`."""

    def __init__(
        self, request: CompressionRequest, origin: Origin, dataset: ImageDataset | None, device: torch.device
    ) -> None:
        """Raises EngineError for a chain of other than one method of each kind."""
        first, second = (get_method(method["type"]) for method in request.methods)
        rewrites = [isinstance(method, RewritingMethod) for method in (first, second)]
        if sum(rewrites) != 1:
            raise EngineError(
                "invalid_request",
                f"methods chains {first.type!r} and {second.type!r}. A chain is of one method that removes channels "
                'and one that rewrites layers, in either order: [{"type": "penni"}, {"type": "magnitude"}]. Run '
                "others one after another.",
                param="/methods",
            )
        self._kernels_first = rewrites[0]
        sharing = rewrites.index(True)
        super().__init__(request, origin, device, method=request.methods[sharing], position=sharing)
        if self._kernels_first and self._config.unit != "column":
            raise EngineError(
                "invalid_request",
                "Channels that leave after kernels are shared take whole columns along, so unit has to be column "
                f"here. Put {first.type} second, where single coefficients are pruned last.",
                param="/methods/0/unit",
            )
        self._cutting_position = rewrites.index(False)
        self._cutting: Mapping[str, Any] = request.methods[self._cutting_position]
        self._dataset = dataset
        with option_errors_at(self._cutting_position):
            self._chooser = self._chooser_for(origin.network)

    def _rewrite(self, task: RewritingTask) -> Work:
        try:
            return self._kernels_then_channels(task) if self._kernels_first else self._channels_then_kernels(task)
        except EngineError as error:
            if error.code != "target_infeasible":
                raise
            raise self._refusal(error) from error

    def _channels_then_kernels(self, task: RewritingTask) -> Work:
        starts = cache(partial(self._start, task))
        attempts = [(share, False) for share in _SHARES]
        if task.nearest:
            attempts += [(share, True) for share in reversed(_SHARES)]
        refusals = []
        for share, nearest in attempts:
            cut, start = starts(share)
            try:
                rewriting = self._rewritten(replace(task, network=start, nearest=nearest))
            except EngineError as error:
                if error.code != "target_infeasible":
                    raise
                refusals.append(_of_what_is_left(error, cut))
                continue
            rewriting = replace(rewriting, kept=compose(cut.kept, rewriting.kept))
            halves = (
                self._half(self._cutting["type"], cut.choice.plan.predicted),
                self._half(self._method.type, rewriting.predicted),
            )
            return self._work(task.constraints, rewriting, cut, halves)
        # Where channels went so far that there are no kernels to share, what a shorter way comes to says more.
        raise max(refusals, key=lambda error: ("costs" in error.details, refusals.index(error)))

    def _start(self, task: RewritingTask, share: float) -> tuple[Cut, Network]:
        """The network without the channels that leave this far on the way, and the same fitted to the images."""
        cut = Cut.of(
            task.network,
            self._chosen(self._chooser, [cap.on_the_way(task.original, share) for cap in task.constraints]),
        )
        if task.images is None:
            return cut, cut.pruned
        return cut, refit(cut.pruned, task.network, task.images, kept=cut.kept, device=task.device).network

    def _kernels_then_channels(self, task: RewritingTask) -> Work:
        caps = tuple(cap.on_the_way(task.original, _SHARES[0]) for cap in task.constraints)
        shared = self._rewritten(replace(task, constraints=caps, nearest=True, share=_SHARES[0]))
        written = shared.reference(shared.network)
        chooser = self._chooser_for(written)
        whole = replace(profile(written).costs, size_bytes=safetensors_bytes(written))
        # Whole columns go with the channels, so what is aimed at by nonzeros bounds the widths as a cap does.
        limits = (*task.constraints, *shared.narrowing.aims)

        def at(limit: float) -> Cut:
            """Channels of the written-out network cut onto this share of the way to the caps."""
            return Cut.of(written, self._chosen(chooser, [cap.on_the_way(whole, limit) for cap in limits]))

        # The most channels with which no column has to go; all of the way, the plain network is within the caps itself.
        low, high, cut = 0.0, 1.0, None
        for _ in range(_WIDTH_TRIES):
            middle = (low + high) / 2
            tried = at(middle)
            if shared.narrowing.fits(tried.pruned, tried.kept, task.constraints):
                high, cut = middle, tried
            else:
                low = middle
        cut = cut or at(high)
        fitting = None
        if task.images is not None:
            fitting = Fitting(task.network, compose(shared.kept, cut.kept), task.images, task.device)
        rewriting = shared.narrowing.narrow(cut.pruned, cut.kept, task.constraints, task.nearest, fitting)
        halves = (
            self._half(self._method.type, shared.predicted),
            self._half(self._cutting["type"], rewriting.predicted),
        )
        return self._work(task.constraints, rewriting, cut, halves)

    def _work(
        self, constraints: Sequence[Constraint], rewriting: Rewriting, cut: Cut, halves: Sequence[Mapping[str, Any]]
    ) -> Work:
        choice = cut.choice
        binding = most_used(constraints, rewriting.predicted)
        plain = rewriting.reference(rewriting.network)
        layers = tuple(_planned(layer, plain) for layer in choice.plan.layers)
        said = f"First {halves[0]['method']}, then {halves[1]['method']}, which started from "
        said += f"{halves[0]['macs']:,} MACs. "
        plan = replace(
            choice.plan,
            predicted=rewriting.predicted,
            constraints=tuple(constraints),
            layers=layers,
            binding=binding,
            note=binding_note(binding, rewriting.predicted) + said + rewriting.note,
        )
        report = {"chain": [dict(half) for half in halves]}
        return Work(rewriting, Choice(choice.analysis, plan, choice.changed), (cut,), report)

    def _chooser_for(self, network: Network) -> Chooser:
        return Chooser(
            network,
            self._cutting,
            seed=self._request.seed,
            with_size=self._request.budget.has("size"),
            dataset=self._dataset,
            device=self._device,
        )

    def _chosen(self, chooser: Chooser, caps: Sequence[Constraint]) -> Choice:
        """The plan within the caps, or the nearest to them: the other method goes on from there."""
        with option_errors_at(self._cutting_position):
            try:
                return chooser.choose(caps)
            except EngineError as error:
                if error.code != "target_infeasible":
                    raise
                return chooser.nearest(caps)

    def _refusal(self, error: EngineError) -> EngineError:
        """What the second method says it cannot reach, said of the chain and beside what the original costs."""
        cutting, sharing = self._cutting["type"], self._method.type
        details = {**error.details, "costs": self._origin.costs.as_dict()}
        message = error.message
        missed = [cap for cap in error.details.get("constraints", ()) if not cap["met"]]
        if missed:
            order = (sharing, cutting) if self._kernels_first else (cutting, sharing)
            said = ", ".join(f"{cap['metric']} {cap['value']:,} where {cap['limit']:,} is the limit" for cap in missed)
            message = f"{order[0]} and then {order[1]} reach no less than {said}. Raise the cap"
            message += f", or try the other order: {order[1]} first." if self._config.unit == "column" else "."
        elif error.param == f"/methods/{self._position}/type":
            where = "The network" if self._kernels_first else f"What {cutting} leaves of the network"
            message = (
                f"{where} has no convolution whose kernels could be shared: {sharing} needs ordinary convolutions "
                f"with at least 5 input channels. Use {cutting} alone"
            )
            message += "." if self._kernels_first else f", or try the other order: {sharing} first."
        return EngineError(error.code, message, param=error.param, details=details)

    @staticmethod
    def _half(method: str, costs: Costs) -> dict[str, Any]:
        return {"method": method, "macs": costs.macs, "params": costs.params}


def _of_what_is_left(error: EngineError, cut: Cut) -> EngineError:
    """With the costs that the removed channels alone come to, where there was nothing to do after them."""
    smallest = error.details.get("smallest") or cut.choice.plan.predicted.as_dict()
    return EngineError(error.code, error.message, param=error.param, details={**error.details, "smallest": smallest})


def _planned(layer: PlannedLayer, plain: Network) -> PlannedLayer:
    """With the width that it has in the end, where channels died in the rewriting."""
    weight = plain.tensors.get(f"{layer.name}.weight")
    return layer if weight is None or weight.shape[0] > layer.after else replace(layer, after=weight.shape[0])
