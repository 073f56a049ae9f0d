"""The way of a method that replaces layers by another form: fit, verify, recover, write out.

    rewrite onto the caps (closed forms on images) ── both forms agree? ── recover (trains the new parameters) ── deliver

What is checked is that the delivered form computes what the plain form with the same weights computes, to 1e-5, before
training and after it. Where channels of the network itself died, a method takes them out through the engine's own
surgery, against the masked reference (`core.penni.shrinking`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter

from core.agreement import relative_error, require_agreement
from core.analysis import analyse
from core.budget import Constraint, Costs
from core.choice import Choice
from core.cut import Cut
from core.errors import EngineError
from core.methods import RewritingMethod, get_method
from core.methods.method import Rewriting, RewritingTask
from core.network import Network
from core.origin import Origin
from core.penni.shrinking import keep_of
from core.planning import Plan, PlannedLayer
from core.recovery import ImageDataset
from core.recovery.corrections import MIN_REFIT_EXAMPLES, refit_examples
from core.recovery.judges import judge_for
from core.recovery.steps import Steps
from core.request import CompressionRequest
from core.run import Made, Run
from core.surgery import Equivalence

TOLERANCE = 1e-5
_BATCH = 3
_FIRST_METHOD = "/methods/0"


@dataclass(frozen=True, eq=False)
class Work:
    """A network within the caps that is not trained yet. report: what there is to say beside the rewriting's own."""

    rewriting: Rewriting
    choice: Choice
    cuts: tuple[Cut, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)


class Rewriter:
    """Rewrites one network under changing caps; `choose` and `nearest` are those of a `Chooser`."""

    def __init__(
        self,
        request: CompressionRequest,
        origin: Origin,
        device: torch.device,
        *,
        method: Mapping[str, Any],
        position: int = 0,
    ) -> None:
        """method: as in the request, where it is at `position`. Raises EngineError for what it cannot serve."""
        options = dict(method)
        found = get_method(options.pop("type"))
        if not isinstance(found, RewritingMethod):
            raise TypeError(f"{found.type} removes channels")
        self._method, self._request, self._origin, self._device = found, request, origin, device
        self._most_examples: int | None = None
        self._position = position
        with option_errors_at(position):
            self._config = found.config(options)
        method = self._method
        if request.plan is not None:
            raise EngineError(
                "invalid_request",
                f"The method {method.type!r} keeps every width, so it takes no plan. Leave plan out, or use magnitude.",
                param="/plan",
            )
        if request.budget.has("latency_ms"):
            raise EngineError(
                "invalid_request",
                f"The method {method.type!r} counts and does not time, so it cannot aim at latency_ms. Cap flops, or "
                "use magnitude.",
                param="/budget/latency_ms",
            )

    def limited(self, examples: int) -> Rewriter:
        """One that fits to no more images than this."""
        limited = copy.copy(self)
        limited._most_examples = examples
        return limited

    def choose(self, constraints: Sequence[Constraint]) -> Choice:
        """What weights alone say, without images. Raises EngineError("target_infeasible")."""
        return self._from_weights(constraints, nearest=False).choice

    def nearest(self, constraints: Sequence[Constraint]) -> Choice:
        """The network nearest to caps that cannot all be met."""
        return self._from_weights(constraints, nearest=True).choice

    def planned_network(self, constraints: Sequence[Constraint]) -> Network:
        """What would be delivered without images and training; nearest to the caps where they are out of reach."""
        rewriting = self._from_weights(constraints, nearest=True).rewriting
        return rewriting.delivered(rewriting.network)

    def work(self, run: Run, constraints: Sequence[Constraint], step: str) -> Work:
        """What is trained from: fitted to images, where these make it better on held-out ones."""
        nearest, dataset = self._request.on_unmet == "best_effort", run.dataset
        option = self._method.by_labels(self._config)
        if option is not None and (dataset is None or not dataset.labelled):
            raise EngineError(
                "dataset_invalid",
                f"The option {option!r} of {self._method.type} trains by labels. Give a labelled dataset, or leave it "
                "out.",
                param=f"/methods/{self._position}/{option}",
            )
        weights_alone = self._task(constraints, nearest=nearest)
        images = self._images(dataset)
        steps = Steps(run.checkpoint, step, self._origin.network)
        found = self._rewrite(
            replace(weights_alone, images=images, dataset=dataset, progress=run.stages.listener, steps=steps)
        )
        if images is None:
            return found
        alone = self._rewrite(weights_alone)
        judge = judge_for(self._origin.network, dataset, self._device)
        fitted, plain = (judge.value(work.rewriting.reference(work.rewriting.network)) for work in (found, alone))
        better = judge.no_worse(fitted, plain)
        # A fit revives channels that weights alone leave dead, which may be too much for a cap near the least.
        within = [_within(work.rewriting, constraints) for work in (found, alone)]
        if within[0] != within[1]:
            better = within[0]
        guard = {
            "measure": judge.measure,
            "fitted": round(fitted, 6),
            "weights_alone": round(plain, 6),
            "taken": "fitted" if better else "weights_alone",
        }
        taken = found if better else alone
        return replace(taken, report={**taken.report, "guard": guard})

    def make(self, run: Run, constraints: Sequence[Constraint], step: str) -> Made:
        """The recovered network within the caps; nearest to them with best effort."""
        seed = self._request.seed
        with run.stages.run("apply"):
            work = self.work(run, constraints, step)
        rewriting = work.rewriting
        with run.stages.run("verify"):
            proofs = [cut.proven(seed) for cut in work.cuts]
            _require_equal_forms(rewriting, rewriting.network, seed)
            require_agreement(rewriting.delivered(rewriting.network), rewriting.predicted, "The plan")
        with run.stages.run("recover"):
            recovered = run.recovered(rewriting.network, rewriting.kept, step)
            proofs.append(_require_equal_forms(rewriting, recovered.network, seed))
        details = {
            **recovered.details,
            "rewriting": {"method": self._method.type, **rewriting.report, **work.report},
        }
        return Made(
            work.choice,
            _together(proofs),
            replace(recovered, network=rewriting.delivered(recovered.network), details=details),
            rewriting.sparse(recovered.network),
        )

    def _from_weights(self, constraints: Sequence[Constraint], *, nearest: bool) -> Work:
        return self._rewrite(self._task(constraints, nearest=nearest))

    def _task(self, constraints: Sequence[Constraint], *, nearest: bool) -> RewritingTask:
        """The whole network, by weights alone."""
        origin = self._origin
        return RewritingTask(
            origin.network, origin.costs, tuple(constraints), nearest, self._device, self._request.seed
        )

    def _rewrite(self, task: RewritingTask) -> Work:
        rewriting = self._rewritten(task)
        return Work(rewriting, self._choice(rewriting, task.constraints))

    def _rewritten(self, task: RewritingTask) -> Rewriting:
        with option_errors_at(self._position):
            return self._method.rewrite(task, self._config)

    def _images(self, dataset: ImageDataset | None) -> Tensor | None:
        """Prepared train images; None where so few fit the memory and the time of a fit that it would say nothing."""
        if dataset is None:
            return None
        count = refit_examples(self._origin.network, self._origin.network, self._device)
        count = min(count, self._most_examples or count)
        images = dataset.train.sample(max(1, count)).images
        return dataset.prepare(images) if len(images) >= MIN_REFIT_EXAMPLES else None

    def _choice(self, rewriting: Rewriting, constraints: Sequence[Constraint]) -> Choice:
        """A plan in which every channel stays that did not die in the rewriting."""
        analysis = analyse(self._origin.network)
        keep = keep_of(analysis, rewriting.kept)
        binding = most_used(constraints, rewriting.predicted)
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
            note=binding_note(binding, rewriting.predicted) + rewriting.note,
        )
        return Choice(analysis, plan, ())


def most_used(constraints: Sequence[Constraint], costs: Costs) -> Constraint | None:
    return max(constraints, key=lambda cap: cap.value(costs) / max(1, cap.limit), default=None)


def binding_note(binding: Constraint | None, costs: Costs) -> str:
    if binding is None:
        return ""
    share = int(1e4 * binding.value(costs) / max(1, binding.limit)) / 100
    return (
        f"The cap on {binding.metric} binds: {binding.value(costs):,} of {binding.limit:,} are used ({share:.2f} %). "
    )


@contextmanager
def option_errors_at(position: int) -> Iterator[None]:
    """Errors about options of a method name its place in the request."""
    try:
        yield
    except EngineError as error:
        if error.param is None or not error.param.startswith(_FIRST_METHOD):
            raise
        param = f"/methods/{position}{error.param.removeprefix(_FIRST_METHOD)}"
        raise EngineError(error.code, error.message, param=param, details=error.details) from error


def _within(rewriting: Rewriting, constraints: Sequence[Constraint]) -> bool:
    """Whether what would be delivered meets the caps and what its options aim at."""
    aims = rewriting.report.get("aims", ())
    return all(cap.met_by(rewriting.predicted) for cap in constraints) and all(
        aim["value"] <= aim["limit"] for aim in aims
    )


def _together(proofs: Sequence[Equivalence]) -> Equivalence:
    """Several proofs as one; the worst error is the one that counts."""
    worst = max(proofs, key=lambda proof: proof.max_relative_error)
    return replace(
        worst,
        insensitive=tuple(name for proof in proofs for name in proof.insensitive),
        checked=sum(proof.checked for proof in proofs),
    )


def _require_equal_forms(rewriting: Rewriting, trained: Network, seed: int) -> Equivalence:
    """Raise EngineError where the delivered form does not compute what the plain one computes."""
    found = compare_forms(
        rewriting.reference(trained), rewriting.delivered(trained), [layer.node for layer in rewriting.layers], seed
    )
    if not found.passed:
        raise EngineError(
            "equivalence_failed",
            "The rewritten network does not agree with its own weights (relative error "
            f"{found.max_relative_error:.1e} at {found.worst}), so it is not delivered. This is a fault of the "
            "service, not of the checkpoint; please report it with the model's architecture.",
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
    errors = {name: relative_error(one, other) for name, one, other in pairs}
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
