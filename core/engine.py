"""The engine: one pipeline, read from top to bottom.

    intake → profile → plan → apply → verify → recover → encode → deliver

`compress` takes a checkpoint and a budget and leaves a smaller network in a folder, with the proof that it meets every
cap and that the surgery was correct; or it raises `EngineError` with the reason. `propose` stops after the plan and says
what it would do. The engine knows no web, database or cloud.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.agreement import require_agreement, require_equal, require_same_function
from core.analysis import profile
from core.budget import Constraint, Costs
from core.checkpoint import Checkpoint
from core.choice import Choice, Chooser, given_widths
from core.deliver import NO_CALIBRATION, deliver
from core.encoding.encode import Encoded, encode
from core.encoding.options import EncodingOptions
from core.encoding.steering import Steering
from core.errors import EngineError
from core.latency import REPLANS, analytic, delivered_latency, exported_latency, guide_for, guided
from core.methods import RewritingMethod, get_method
from core.network import Network
from core.origin import Origin, load_origin
from core.progress import Progress, Stages, silent
from core.proposal import compose_proposal
from core.recovery import ImageDataset, Recovered, RecoveryConfig, check_baseline, check_fits, load_dataset, recover
from core.report import compose_result
from core.request import CompressionRequest
from core.rewriting import Rewriter
from core.surgery import Equivalence, apply, kept_indices, verify

__all__ = ["CompressionRequest", "compress", "propose", "resolve_device"]

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


def compress(
    request: CompressionRequest,
    output_folder: Path,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Compress one checkpoint onto its budget and write the artifacts into `output_folder`.

    checkpoint: where recovery keeps what an interrupted run of the same request goes on from; None keeps nothing.
    Returns the job's `result` object (API.md), which is also what `report.json` holds. Raises EngineError.
    """
    checkpoint = checkpoint or Checkpoint()
    started = time.monotonic()
    torch.manual_seed(request.seed)
    stages = Stages(progress)
    device = resolve_device(request.device)
    recovery = RecoveryConfig(**request.recovery)
    origin = load_origin(request, stages)
    require_agreement(origin.upload, origin.costs, "The profile")
    require_same_function(origin.upload, origin.network, origin.folded, request.seed)
    constraints = request.budget.constraints(origin.costs)
    steering = _steering(request, origin)
    with stages.run("plan"):
        scored_by_data = _needs_data(request)
        # Unless scores look at images, an infeasible budget is refused before a single one is read.
        dataset = _load_dataset(request, origin.upload, device) if scored_by_data else None
        chooser = _chooser(request, origin, dataset, device)
        choice = _choose(chooser, steering.planned(constraints), request)
        if not scored_by_data:
            dataset = _load_dataset(request, origin.upload, device)
    candidate = _compress_onto(
        constraints, choice, chooser, request, origin, dataset, device, stages, checkpoint, recovery
    )

    with stages.run("deliver"):
        delivery = deliver(
            origin.network,
            candidate.network,
            request.outputs,
            output_folder,
            compact=candidate.encoded.compact,
            onnx_opset=request.onnx_opset,
            dataset=dataset,
        )
        costs = require_agreement(candidate.network, profile(candidate.network).costs, "The delivered network")
        latency = delivered_latency(candidate.network, delivery.latency, constraints)
        measured = dataclasses.replace(
            costs, size_bytes=delivery.size_bytes, latency_ms=latency.p50 if latency else None
        )
        result = compose_result(
            request=dataclasses.asdict(request),
            original=origin.upload,
            compressed=candidate.network,
            baseline=origin.profile,
            baseline_costs=origin.costs,
            measured=measured,
            constraints=constraints,
            choice=candidate.choice,
            folded=origin.folded,
            equivalence=candidate.equivalence,
            recovered=candidate.recovered,
            sparse=candidate.sparse,
            encoded=candidate.encoded,
            delivery=delivery,
            original_latency=origin.latency or delivery.original_latency,
            latency=latency,
            device=str(device),
            input_sha256=_sha256(request.model_path),
            seconds=time.monotonic() - started,
        )
        _require_met(result, request)
        return delivery.write_report(result)


def propose(request: CompressionRequest, progress: Progress = silent) -> dict[str, Any]:
    """What `compress` would make of this request, without making it: widths and exact costs, layer by layer.

    Writes nothing and reads no dataset unless the scores need one. A budget that is out of reach is an answer, too
    (`feasible` false, with the nearest network); anything else that is wrong with the request raises EngineError.
    """
    torch.manual_seed(request.seed)
    stages = Stages(progress)
    device = resolve_device(request.device)
    origin = load_origin(request, stages)
    steering = _steering(request, origin)
    constraints = steering.planned(request.budget.constraints(origin.costs))
    with stages.run("plan"):
        dataset = _load_dataset(request, origin.upload, device) if _needs_data(request) else None
        chooser = _chooser(request, origin, dataset, device, with_size=True)
        capped, guide = analytic(constraints), guide_for(constraints, origin.costs)
        refusal = None
        try:
            choice = chooser.choose(capped)
            if guide is not None:
                choice = guided(chooser, capped, guide, choice)
        except EngineError as error:
            if error.code != "target_infeasible":
                raise
            refusal, choice = error, chooser.nearest(capped)
        if isinstance(chooser, Rewriter):
            after = profile(chooser.planned_network(capped))
        else:
            after = profile(apply(origin.network, choice.analysis, choice.plan.keep))
        require_equal(after.costs, choice.plan.predicted, "The plan")
        return compose_proposal(
            baseline=origin.profile,
            baseline_costs=origin.costs,
            after=after,
            constraints=[constraint for constraint in constraints if not steering.takes(constraint)],
            encoded=any(map(steering.takes, constraints)),
            choice=choice,
            folded=origin.folded,
            refusal=refusal,
        )


def resolve_device(name: str) -> torch.device:
    """The torch device of `auto | cpu | gpu`. Raises EngineError where a GPU is asked for and there is none."""
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "gpu":
        raise EngineError(
            "invalid_request", "A GPU was asked for and this worker has none; use device auto or cpu.", param="/device"
        )
    return torch.device("cpu")


def _load_dataset(request: CompressionRequest, original: Network, device: torch.device) -> ImageDataset | None:
    """The images, checked against the network and its accuracy on them; None without a dataset."""
    dataset = None
    if request.dataset_path is not None:
        dataset = load_dataset(
            request.dataset_path,
            normalization=request.normalization,
            scale=request.scale,
            conversion=request.conversion,
            seed=request.seed,
        )
        check_fits(dataset, original)
        check_baseline(original, dataset, device=device)
    if dataset is None and "onnx-int8" in request.outputs:
        raise EngineError("dataset_invalid", NO_CALIBRATION, param="/outputs")
    if dataset is None and request.encoding.get("epochs"):
        raise EngineError(
            "dataset_invalid",
            "encoding.epochs asks for training, which needs images. Give a dataset, labelled or not, or leave it out.",
            param="/encoding/epochs",
        )
    labelled = dataset is not None and dataset.labelled
    recovery = RecoveryConfig(**request.recovery)
    if dataset is None and recovery.trains:
        raise EngineError(
            "dataset_invalid",
            "recovery asks for training, which needs images. Give a dataset, labelled or not, or leave recovery out.",
            param="/recovery",
        )
    if not labelled and recovery.needs_labels is not None:
        raise EngineError(
            "dataset_invalid",
            f"recovery.{recovery.needs_labels} means nothing without labels, where training follows the original's "
            "outputs. Give labels, or leave it out.",
            param=f"/recovery/{recovery.needs_labels}",
        )
    if request.max_accuracy_drop is not None and not labelled:
        raise EngineError(
            "dataset_invalid",
            "accuracy.max_drop can only be kept with a labelled dataset to measure it on. Give labels, or leave it out.",
            param="/accuracy",
        )
    return dataset


def _needs_data(request: CompressionRequest) -> bool:
    return get_method(request.methods[0]["type"]).needs_data and request.dataset_path is not None


def _chooser(
    request: CompressionRequest,
    origin: Origin,
    dataset: ImageDataset | None,
    device: torch.device,
    *,
    with_size: bool = False,
) -> Chooser | Rewriter:
    method = get_method(request.methods[0]["type"])
    if isinstance(method, RewritingMethod):
        return Rewriter(method, request, origin, device)
    return Chooser(
        origin.network,
        request.methods[0],
        seed=request.seed,
        given=given_widths(request.plan),
        with_size=with_size or request.budget.has("size"),
        dataset=dataset,
        device=device,
    )


def _steering(request: CompressionRequest, origin: Origin) -> Steering:
    options = EncodingOptions(**request.encoding)
    return Steering.of(
        options, request.outputs, origin.network, capped=request.budget.has("size"), opset=request.onnx_opset
    )


def _choose(chooser: Chooser | Rewriter, constraints: Sequence[Constraint], request: CompressionRequest) -> Choice:
    """The plan within the caps that can be planned for; with best effort the nearest one."""
    capped = analytic(constraints)
    try:
        return chooser.choose(capped)
    except EngineError as error:
        if error.code == "target_infeasible" and request.on_unmet == "best_effort":
            return chooser.nearest(capped)
        raise


def _applied(origin: Origin, choice: Choice) -> Network:
    pruned = apply(origin.network, choice.analysis, choice.plan.keep)
    require_agreement(pruned, choice.plan.predicted, "The plan")
    return pruned


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


def _compress_onto(
    constraints: Sequence[Constraint],
    choice: Choice,
    chooser: Chooser | Rewriter,
    request: CompressionRequest,
    origin: Origin,
    dataset: ImageDataset | None,
    device: torch.device,
    stages: Stages,
    checkpoint: Checkpoint,
    recovery: RecoveryConfig,
) -> Candidate:
    """Apply `choice`, verify and recover; with an accuracy floor and best effort, plan again until the floor holds."""
    steering = _steering(request, origin)
    relaxations = RELAXATIONS if request.max_accuracy_drop is not None and request.on_unmet == "best_effort" else (0.0,)
    for index, relaxation in enumerate(relaxations):
        caps = tuple(_relax(constraint, origin.costs, relaxation) for constraint in constraints)
        if relaxation:
            with stages.run("plan"):
                choice = _choose(chooser, steering.planned(caps), request)
        sparse = None
        if isinstance(chooser, Rewriter):
            made = chooser.make(steering.planned(caps), dataset, stages, checkpoint, f"recover_{index}")
            choice, equivalence, recovered, sparse = made.choice, made.equivalence, made.recovered, made.sparse
        else:
            choice, pruned = _apply_within_latency(steering.planned(caps), choice, chooser, request, origin, stages)
            with stages.run("verify"):
                equivalence = verify(origin.network, choice.analysis, choice.plan.keep, pruned, seed=request.seed)
                if not equivalence.passed:
                    raise EngineError(
                        "equivalence_failed",
                        "The pruned network does not agree with its masked reference "
                        f"({_disagreement(equivalence)}), so it is not delivered. This is a fault of the service, not of the "
                        "checkpoint; please report it with the model's architecture.",
                        details={
                            "layer": equivalence.worst,
                            "problem": equivalence.problem,
                            "insensitive": list(equivalence.insensitive),
                        },
                    )
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
                    step=f"recover_{index}",
                )
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


def _disagreement(equivalence: Equivalence) -> str:
    """Why verification failed, in words."""
    if equivalence.problem is not None:
        return equivalence.problem
    return f"relative error {equivalence.max_relative_error:.1e} at {equivalence.worst}"


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


def _require_met(result: Mapping[str, Any], request: CompressionRequest) -> None:
    if result["met"] or request.on_unmet == "best_effort":
        return
    missed = [c for c in result["constraints"] if not c["met"]]
    raise EngineError("target_unmet", f"The delivered network misses {missed}.", details={"result": dict(result)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
