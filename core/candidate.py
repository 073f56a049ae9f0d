"""One candidate for delivery: a plan applied, verified, recovered and encoded, within what its budget can be planned
for.

Two budgets need more than one try. A cap on latency is measured and, after a miss, planned again with fewer MACs. An
accuracy floor under `on_unmet: best_effort` moves the caps towards the original until the floor holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from core.agreement import require_agreement
from core.budget import Constraint, Costs
from core.choice import Choice, Chooser
from core.cut import Cut
from core.draws import draw_and_make
from core.encoding.encode import Encoded, encode
from core.encoding.steering import Steering
from core.errors import EngineError
from core.latency import REPLANS, analytic, exported_latency, guide_for, guided
from core.origin import Origin
from core.recovery import Recovered
from core.request import CompressionRequest
from core.rewriting import Rewriter
from core.rivals import Rivals
from core.run import Made, Run

# With `on_unmet: best_effort`, an accuracy floor that the budget breaks is kept by moving the caps this far towards the
# original costs, one attempt after another; the last one delivers the original network.
RELAXATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Candidate:
    """A compressed network before delivery, as it was made and as it is encoded."""

    made: Made
    encoded: Encoded


def choose(
    chooser: Chooser | Rewriter | Rivals, constraints: Sequence[Constraint], request: CompressionRequest
) -> Choice:
    """The plan within the caps that can be planned for; with best effort the nearest one."""
    capped = analytic(constraints)
    try:
        return chooser.choose(capped)
    except EngineError as error:
        if error.code == "target_infeasible" and request.on_unmet == "best_effort":
            return chooser.nearest(capped)
        raise


def compress_onto(
    run: Run,
    constraints: Sequence[Constraint],
    choice: Choice,
    chooser: Chooser | Rewriter | Rivals,
    steering: Steering,
) -> Candidate:
    """Apply `choice`, verify and recover; with an accuracy floor and best effort, plan again until the floor holds."""
    request = run.request
    relaxations = RELAXATIONS if request.max_accuracy_drop is not None and request.on_unmet == "best_effort" else (0.0,)
    for index, relaxation in enumerate(relaxations):
        caps = tuple(_relax(constraint, run.origin.costs, relaxation) for constraint in constraints)
        planned = steering.planned(caps)
        if relaxation:
            with run.stages.run("plan"):
                choice = choose(chooser, planned, request)
        made = _made(run, chooser, choice, planned, f"recover_{index}")
        encoded = _encoded(run, made.recovered, steering, caps, f"encode_{index}")
        drop = _accuracy_drop(made.recovered, encoded, request)
        if drop is None or drop <= request.max_accuracy_drop:
            return Candidate(made, encoded)
    raise EngineError(
        "accuracy_floor",
        _floor_missed(drop, request),
        param="/accuracy/max_drop",
        details={"accuracy_drop": drop, "costs": made.choice.plan.predicted.as_dict()},
    )


def _floor_missed(drop: float, request: CompressionRequest) -> str:
    """What to say where the accuracy floor does not hold, and what may be done."""
    said = f"falls by {drop:.4f}, more than accuracy.max_drop = {request.max_accuracy_drop:g}."
    if request.on_unmet == "best_effort":
        return (
            f"With the budget relaxed to what the original costs, validation accuracy still {said} That is what the "
            "encoding, the plan or the options of the method ask for beside the budget: ask for less there, allow a "
            "larger drop, or train longer (recovery.epochs)."
        )
    return (
        f"Within the budget, test accuracy {said} Raise the caps, allow a larger drop, train longer (recovery.epochs), "
        'or use on_unmet "best_effort" to have the budget relaxed until the floor holds.'
    )


def _made(
    run: Run, chooser: Chooser | Rewriter | Rivals, choice: Choice, constraints: Sequence[Constraint], step: str
) -> Made:
    """One network within the caps, by whichever way `chooser` is. choice: what it gives for them."""
    if isinstance(chooser, Rewriter):
        return chooser.make(run, constraints, step)
    if isinstance(chooser, Chooser):
        return draw_and_make(chooser, choice, constraints, run.request, partial(_narrowed, run, constraints), step)
    made, trial = chooser.rewritten(run, constraints, choice, step)
    made = made or _made(run, chooser.chooser, choice, constraints, step)
    if trial is None:
        return made
    details = {**made.recovered.details, "trial": trial}
    return dataclasses.replace(made, recovered=dataclasses.replace(made.recovered, details=details))


def _narrowed(run: Run, constraints: Sequence[Constraint], chooser: Chooser, choice: Choice, step: str) -> Made:
    """`choice` applied, verified and recovered."""
    cut = _cut_within_latency(run, constraints, chooser, choice)
    with run.stages.run("verify"):
        equivalence = cut.proven(run.request.seed)
    with run.stages.run("recover"):
        recovered = run.recovered(cut.pruned, cut.kept, step)
    return Made(cut.choice, equivalence, recovered)


def _encoded(
    run: Run, recovered: Recovered, steering: Steering, constraints: Sequence[Constraint], step: str
) -> Encoded:
    if not steering.encodes:
        return Encoded.unchanged(recovered)
    with run.stages.run("encode"):
        return encode(
            recovered,
            run.origin.network,
            run.dataset,
            steering.options,
            stored=steering.stored,
            size_limit=steering.size_limit(constraints),
            opset=run.request.onnx_opset,
            seed=run.request.seed,
            device=run.device,
            progress=run.stages.listener,
            checkpoint=run.checkpoint,
            step=step,
        )


def _cut_within_latency(run: Run, constraints: Sequence[Constraint], chooser: Chooser, choice: Choice) -> Cut:
    """Apply `choice`; under a cap on latency measure what comes out and, after a miss, plan again with fewer MACs."""
    stages, origin = run.stages, run.origin
    guide = guide_for(constraints, origin.costs)
    if guide is None:
        with stages.run("apply"):
            return _applied(origin, choice)
    capped = analytic(constraints)
    for _ in range(1 + REPLANS):
        with stages.run("plan"):
            choice = guided(chooser, capped, guide, choice)
        with stages.run("apply"):
            cut = _applied(origin, choice)
            latency = exported_latency(cut.pruned)
        smaller = choice.plan.predicted.macs < guide.points[-1][0]
        guide.learn(choice.plan.predicted.macs, latency.p50)
        if guide.met or not smaller:
            break
    if not guide.met and run.request.on_unmet == "fail":
        reached = dataclasses.replace(choice.plan.predicted, latency_ms=latency.p50)
        raise EngineError(
            "target_unmet",
            f"latency_ms at most {guide.limit_ms:g} was not reached: the original takes {origin.costs.latency_ms:g} ms, "
            f"and with {reached.macs:,} of {origin.costs.macs:,} MACs the network takes {latency.p50:g} ms on this "
            "worker. Raise the cap, or ask for round_to 8, which hardware likes.",
            param="/budget/latency_ms",
            details={
                "costs": reached.as_dict(),
                "attempts": [{"macs": macs, "latency_ms": latency_ms} for macs, latency_ms in guide.points],
            },
        )
    return cut


def _applied(origin: Origin, choice: Choice) -> Cut:
    cut = Cut.of(origin.network, choice)
    require_agreement(cut.pruned, choice.plan.predicted, "The plan")
    return cut


def _accuracy_drop(recovered: Recovered, encoded: Encoded, request: CompressionRequest) -> float | None:
    """What the accuracy floor limits; None without a floor.

    One network is held against the floor by its test accuracy, which decides nothing but whether it is delivered. Where
    networks of several budgets are tried until one passes, that is a selection, so it looks at validation only: careful
    where the original was trained on those images, since it then scores better on them than on any others.
    """
    if request.max_accuracy_drop is None or recovered.accuracy_original is None:
        return None
    if request.on_unmet == "best_effort":
        return encoded.validation_drop
    return recovered.accuracy_original - encoded.accuracy_after


def _relax(constraint: Constraint, baseline: Costs, fraction: float) -> Constraint:
    distance = max(0, constraint.value(baseline) - constraint.limit) * fraction
    return dataclasses.replace(
        constraint, limit=constraint.limit + (round(distance) if constraint.analytic else distance)
    )
