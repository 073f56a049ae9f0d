"""The way of a method that replaces layers by another form: fit, verify, recover, write out.

    rewrite onto the caps (closed forms on images) ── both forms agree? ── recover (trains the new parameters) ── deliver

What is checked is that the delivered form computes what the plain form with the same weights computes, to 1e-5, before
training and after it. Where channels of the network itself died, a method takes them out through the engine's own surgery,
against the masked reference (`core.penni.shrinking`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Interpreter

from core.agreement import require_agreement
from core.analysis import analyse
from core.budget import Constraint, Costs
from core.checkpoint import Checkpoint
from core.choice import Choice
from core.errors import EngineError
from core.methods import RewritingMethod
from core.methods.method import Rewriting, RewritingTask
from core.network import Network
from core.origin import Origin
from core.penni.shrinking import keep_of
from core.planning import Plan, PlannedLayer
from core.progress import Stages, silent
from core.recovery import ImageDataset, Recovered, RecoveryConfig, recover
from core.recovery.corrections import MIN_REFIT_EXAMPLES, refit_examples
from core.recovery.steps import Steps
from core.request import CompressionRequest
from core.surgery import Equivalence

TOLERANCE = 1e-5
_BATCH = 3


@dataclass(frozen=True)
class Made:
    """recovered: with the network in the form that is delivered. sparse: its counts by nonzeros."""

    choice: Choice
    equivalence: Equivalence
    recovered: Recovered
    sparse: Mapping[str, int]


class Rewriter:
    """Rewrites one network under changing caps; `choose` and `nearest` are those of a `Chooser`."""

    def __init__(
        self, method: RewritingMethod, request: CompressionRequest, origin: Origin, device: torch.device
    ) -> None:
        """Raises EngineError for options and caps that the method cannot serve."""
        options = dict(request.methods[0])
        options.pop("type")
        self._method, self._request, self._origin, self._device = method, request, origin, device
        self._config = method.config(options)
        if request.plan is not None:
            raise EngineError(
                "invalid_request",
                f"The method {method.type!r} keeps every width, so it takes no plan. Leave plan out, or use magnitude.",
                param="/plan",
            )
        if request.budget.has("latency_ms"):
            raise EngineError(
                "invalid_request",
                f"The method {method.type!r} counts and does not time, so it cannot aim at latency_ms. Cap flops, or use "
                "magnitude.",
                param="/budget/latency_ms",
            )

    def choose(self, constraints: Sequence[Constraint]) -> Choice:
        """What weights alone say, without images. Raises EngineError("target_infeasible")."""
        return self._choice(self._planned(constraints, nearest=False), constraints)

    def nearest(self, constraints: Sequence[Constraint]) -> Choice:
        """The network nearest to caps that cannot all be met."""
        return self._choice(self._planned(constraints, nearest=True), constraints)

    def planned_network(self, constraints: Sequence[Constraint]) -> Network:
        """What would be delivered, without images and without training; nearest to the caps where they are out of reach."""
        rewriting = self._planned(constraints, nearest=True)
        return rewriting.delivered(rewriting.network)

    def make(
        self,
        constraints: Sequence[Constraint],
        dataset: ImageDataset | None,
        stages: Stages,
        checkpoint: Checkpoint,
        step: str,
    ) -> Made:
        """The recovered network within the caps; nearest to them with best effort."""
        seed = self._request.seed
        with stages.run("apply"):
            task = RewritingTask(
                self._origin.network,
                tuple(constraints),
                self._images(dataset),
                self._request.on_unmet == "best_effort",
                self._device,
                stages.listener,
                Steps(checkpoint, step, self._origin.network),
            )
            rewriting = self._method.rewrite(task, self._config)
        with stages.run("verify"):
            _require_equal_forms(rewriting, rewriting.network, seed)
            require_agreement(rewriting.delivered(rewriting.network), rewriting.predicted, "The plan")
        with stages.run("recover"):
            recovered = recover(
                rewriting.network,
                self._origin.network,
                dataset,
                RecoveryConfig(**self._request.recovery),
                kept=rewriting.kept,
                seed=seed,
                device=self._device,
                progress=stages.listener,
                checkpoint=checkpoint,
                step=step,
            )
            equivalence = _require_equal_forms(rewriting, recovered.network, seed)
        details = {**recovered.details, "rewriting": {"method": self._method.type, **rewriting.report}}
        return Made(
            self._choice(rewriting, constraints),
            equivalence,
            replace(recovered, network=rewriting.delivered(recovered.network), details=details),
            rewriting.sparse(recovered.network),
        )

    def _planned(self, constraints: Sequence[Constraint], *, nearest: bool) -> Rewriting:
        network = self._origin.network
        nowhere = Steps(Checkpoint(), "plan", network)
        task = RewritingTask(network, tuple(constraints), None, nearest, self._device, silent, nowhere)
        return self._method.rewrite(task, self._config)

    def _images(self, dataset: ImageDataset | None) -> Tensor | None:
        """Prepared train images; None where so few fit the memory and the time of a fit that it would say nothing."""
        if dataset is None:
            return None
        count = refit_examples(self._origin.network, self._origin.network, self._device)
        images = dataset.train.sample(max(1, count)).images
        return dataset.prepare(images) if len(images) >= MIN_REFIT_EXAMPLES else None

    def _choice(self, rewriting: Rewriting, constraints: Sequence[Constraint]) -> Choice:
        """A plan in which every channel stays that did not die in the rewriting."""
        analysis = analyse(self._origin.network)
        keep = keep_of(analysis, rewriting.kept)
        binding = max(constraints, key=lambda cap: cap.value(rewriting.predicted) / max(1, cap.limit), default=None)
        plan = Plan(
            keep=keep,
            widths=analysis.widths(keep),
            predicted=rewriting.predicted,
            constraints=tuple(constraints),
            layers=tuple(
                PlannedLayer(layer.name, layer.before, layer.after, layer.after, layer.after, 1, "")
                for layer in rewriting.layers
            ),
            binding=binding,
            note=_binding_note(binding, rewriting.predicted) + rewriting.note,
        )
        return Choice(analysis, plan, ())


def _binding_note(binding: Constraint | None, costs: Costs) -> str:
    if binding is None:
        return ""
    share = int(1e4 * binding.value(costs) / max(1, binding.limit)) / 100
    return (
        f"The cap on {binding.metric} binds: {binding.value(costs):,} of {binding.limit:,} are used ({share:.2f} %). "
    )


def _require_equal_forms(rewriting: Rewriting, trained: Network, seed: int) -> Equivalence:
    """Raise EngineError where the delivered form does not compute what the plain one computes."""
    found = compare_forms(
        rewriting.reference(trained), rewriting.delivered(trained), [layer.node for layer in rewriting.layers], seed
    )
    if not found.passed:
        raise EngineError(
            "equivalence_failed",
            f"The rewritten network does not agree with its own weights (relative error {found.max_relative_error:.1e} at "
            f"{found.worst}), so it is not delivered. This is a fault of the service, not of the checkpoint; please report "
            "it with the model's architecture.",
            details={"layer": found.worst, "problem": None, "insensitive": []},
        )
    return found


def compare_forms(reference: Network, delivered: Network, nodes: Sequence[str], seed: int) -> Equivalence:
    """Relative errors in float64, at the rewritten layers (`nodes`, which both graphs have) and at the outputs."""
    inputs = reference.random_inputs(_BATCH, seed, torch.float64)
    (wanted, outputs), (found, delivered_outputs) = (
        _values(network.to(torch.float64), inputs, frozenset(nodes)) for network in (reference, delivered)
    )
    pairs = [(name, wanted[name], found[name]) for name in nodes]
    names = [spec.name for spec in reference.outputs]
    pairs += list(zip(names, outputs, delivered_outputs, strict=True))
    errors = {name: float((one - other).norm() / one.norm().clamp_min(1e-30)) for name, one, other in pairs}
    worst = max(errors, key=errors.__getitem__)
    return Equivalence(
        max_relative_error=errors[worst],
        passed=all(error <= TOLERANCE for error in errors.values()),
        insensitive=(),
        checked=len(errors),
        worst=worst,
    )


@torch.no_grad()
def _values(
    network: Network, inputs: Sequence[Tensor], wanted: frozenset[str]
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    interpreter = _Recorder(network.module(), wanted)
    outputs = interpreter.run(*inputs)
    return interpreter.found, outputs


class _Recorder(Interpreter):
    """Keeps the values of some nodes."""

    def __init__(self, module: torch.fx.GraphModule, wanted: frozenset[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self._wanted:
            self.found[n.name] = value.clone()
        return value
