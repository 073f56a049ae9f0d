"""One candidate for delivery: a plan applied, verified, recovered and encoded, within what its budget can be planned for.

Two budgets need more than one try. A cap on latency is measured and, after a miss, planned again with fewer MACs. An
accuracy floor under `on_unmet: best_effort` moves the caps towards the original until the floor holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from core.agreement import require_agreement
from core.budget import Constraint, Costs
from core.checkpoint import Checkpoint
from core.choice import Choice, Chooser
from core.draws import Made, draw_and_make
from core.encoding.encode import Encoded, encode
from core.encoding.steering import Steering
from core.errors import EngineError
from core.latency import REPLANS, analytic, exported_latency, guide_for, guided
from core.network import Network
from core.origin import Origin
from core.progress import Stages
from core.proof import proven
from core.recovery import ImageDataset, Recovered, RecoveryConfig, recover
from core.request import CompressionRequest
from core.rewriting import Rewriter
from core.rivals import Rivals
from core.surgery import Equivalence, apply, kept_indices

# With `on_unmet: best_effort`, an accuracy floor that the budget breaks is kept by moving the caps this far towards the
# original costs, one attempt after another; the last one delivers the original network.
RELAXATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Candidate:
    """A compressed network before delivery."""

    network: Network
    choice: Choice
    equivalence: Equivalence
    recovered: Recovered
    encoded: Encoded
    sparse: Mapping[str, int] | None = None


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
    constraints: Sequence[Constraint],
    choice: Choice,
    chooser: Chooser | Rewriter | Rivals,
    steering: Steering,
    request: CompressionRequest,
    origin: Origin,
    dataset: ImageDataset | None,
    device: torch.device,
    stages: Stages,
    checkpoint: Checkpoint,
    recovery: RecoveryConfig,
) -> Candidate:
    """Apply `choice`, verify and recover; with an accuracy floor and best effort, plan again until the floor holds."""
    relaxations = RELAXATIONS if request.max_accuracy_drop is not None and request.on_unmet == "best_effort" else (0.0,)
    for index, relaxation in enumerate(relaxations):
        caps = tuple(_relax(constraint, origin.costs, relaxation) for constraint in constraints)
        if relaxation:
            with stages.run("plan"):
                choice = choose(chooser, steering.planned(caps), request)
        sparse, taken, trial = None, chooser, None
        if isinstance(chooser, Rivals):
            with stages.run("plan"):
                taken, trial = chooser.decide(
                    steering.planned(caps), choice, dataset, stages, checkpoint, f"recover_{index}"
                )
        planned, rewritten = steering.planned(caps), None
        if isinstance(taken, Rewriter):
            try:
                rewritten = taken.make(planned, dataset, stages, checkpoint, f"recover_{index}")
            except EngineError as refusal:
                if trial is None:
                    raise
                taken, trial = chooser.chooser, chooser.given_up(trial, refusal)
        if rewritten is not None:
            choice, equivalence, recovered = rewritten.choice, rewritten.equivalence, rewritten.recovered
            sparse = rewritten.sparse
        else:
            make = partial(_made, planned, request, origin, dataset, device, stages, checkpoint, recovery)
            made = draw_and_make(taken, choice, planned, request, make, f"recover_{index}")
            choice, equivalence, recovered = made.choice, made.equivalence, made.recovered
        if trial is not None:
            recovered = dataclasses.replace(recovered, details={**recovered.details, "trial": trial})
        encoded = Encoded.unchanged(recovered)
        if steering.encodes:
            with stages.run("encode"):
                encoded = encode(
                    recovered,
                    origin.network,
                    dataset,
                    steering.options,
                    stored=steering.stored,
                    size_limit=steering.size_limit(caps),
                    opset=request.onnx_opset,
                    seed=request.seed,
                    device=device,
                    progress=stages.listener,
                    checkpoint=checkpoint,
                    step=f"encode_{index}",
                )
        drop = _accuracy_drop(recovered, encoded, request)
        if drop is None or drop <= request.max_accuracy_drop:
            return Candidate(encoded.network, choice, equivalence, recovered, encoded, sparse)
    raise EngineError(
        "accuracy_floor",
        f"Within the budget, test accuracy falls by {drop:.4f}, more than accuracy.max_drop = "
        f"{request.max_accuracy_drop:g}. Raise the caps, allow a larger drop, train longer (recovery.epochs), or use "
        'on_unmet "best_effort" to have the budget relaxed until the floor holds.',
        param="/accuracy/max_drop",
        details={"accuracy_drop": drop, "costs": choice.plan.predicted.as_dict()},
    )


def _made(
    constraints: Sequence[Constraint],
    request: CompressionRequest,
    origin: Origin,
    dataset: ImageDataset | None,
    device: torch.device,
    stages: Stages,
    checkpoint: Checkpoint,
    recovery: RecoveryConfig,
    chooser: Chooser,
    choice: Choice,
    step: str,
) -> Made:
    """`choice` applied, verified and recovered."""
    choice, pruned = _apply_within_latency(constraints, choice, chooser, request, origin, stages)
    with stages.run("verify"):
        equivalence = proven(origin.network, choice, pruned, request.seed)
    with stages.run("recover"):
        recovered = recover(
            pruned,
            origin.network,
            dataset,
            recovery,
            kept=kept_indices(choice.analysis, choice.plan.keep),
            seed=request.seed,
            device=device,
            progress=stages.listener,
            checkpoint=checkpoint,
            step=step,
        )
    return Made(choice, equivalence, recovered)


def _apply_within_latency(
    constraints: Sequence[Constraint],
    choice: Choice,
    chooser: Chooser,
    request: CompressionRequest,
    origin: Origin,
    stages: Stages,
) -> tuple[Choice, Network]:
    """Apply `choice`; under a cap on latency measure what comes out and, after a miss, plan again with fewer MACs."""
    guide = guide_for(constraints, origin.costs)
    if guide is None:
        with stages.run("apply"):
            return choice, _applied(origin, choice)
    capped = analytic(constraints)
    for _ in range(1 + REPLANS):
        with stages.run("plan"):
            choice = guided(chooser, capped, guide, choice)
        with stages.run("apply"):
            pruned = _applied(origin, choice)
            latency = exported_latency(pruned)
        smaller = choice.plan.predicted.macs < guide.points[-1][0]
        guide.learn(choice.plan.predicted.macs, latency.p50)
        if guide.met or not smaller:
            break
    if not guide.met and request.on_unmet == "fail":
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
    return choice, pruned


def _applied(origin: Origin, choice: Choice) -> Network:
    pruned = apply(origin.network, choice.analysis, choice.plan.keep)
    require_agreement(pruned, choice.plan.predicted, "The plan")
    return pruned


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
