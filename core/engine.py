"""The engine: one pipeline, read from top to bottom.

    intake → profile → plan → apply → verify → recover → deliver

`compress` takes a checkpoint and a budget and leaves a smaller network in a folder, with the proof that it meets every
cap and that the surgery was correct; or it raises `EngineError` with the reason. It knows no web, database or cloud.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from core.analysis import ChannelAnalysis, Profile, analyse, profile
from core.budget import Budget, Constraint, Costs
from core.deliver import deliver
from core.errors import EngineError
from core.intake import load_network
from core.measure import independent_costs
from core.methods import get_method
from core.network import Network
from core.planning import Plan, plan_widths, smallest_plan
from core.progress import Progress, ProgressEvent, silent
from core.recovery import ImageDataset, Recovered, RecoveryConfig, check_baseline, check_fits, load_dataset, recover
from core.report import compose_result
from core.surgery import Equivalence, apply, kept_indices, verify

# With `on_unmet: best_effort`, an accuracy floor that the budget breaks is kept by moving the caps this far towards the
# original costs, one attempt after another; the last one delivers the original network.
RELAXATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class CompressionRequest:
    """Everything that decides the outcome of one run.

    methods: one mapping per step of the chain, each with its `type`. recovery: keyword arguments of `RecoveryConfig`.
    max_accuracy_drop: largest allowed loss of accuracy, as a fraction; needs a labelled dataset (`_accuracy_drop`).
    """

    model_path: Path
    budget: Budget
    architecture: str | None = None
    architecture_args: Mapping[str, Any] = field(default_factory=dict)
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    methods: tuple[Mapping[str, Any], ...] = ({"type": "auto"},)
    dataset_path: Path | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    scale: float | None = None
    recovery: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("onnx", "safetensors", "report")
    device: Literal["auto", "cpu", "gpu"] = "auto"
    seed: int = 0
    on_unmet: Literal["fail", "best_effort"] = "fail"
    max_accuracy_drop: float | None = None
    request_sha256: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A compressed network before delivery."""

    network: Network
    plan: Plan
    equivalence: Equivalence
    recovered: Recovered


def compress(request: CompressionRequest, output_folder: Path, progress: Progress = silent) -> dict[str, Any]:
    """Compress one checkpoint onto its budget and write the artifacts into `output_folder`.

    Returns the job's `result` object (API.md), which is also what `report.json` holds. Raises EngineError.
    """
    started = time.monotonic()
    torch.manual_seed(request.seed)
    stages = _Stages(progress)
    device = resolve_device(request.device)

    with stages.run("intake"):
        original = load_network(
            request.model_path,
            architecture=request.architecture,
            architecture_args=request.architecture_args,
            input_shape=request.input_shape,
        )

    with stages.run("profile"):
        baseline = profile(original)
        _require_agreement(original, baseline.costs, "The profile")
        analysis = analyse(original)

    constraints = request.budget.constraints(baseline.costs)
    with stages.run("plan"):
        # An infeasible budget is refused before a single image is read.
        plan = _plan(constraints, request, original, analysis)
        dataset = _load_dataset(request, original, device)
    candidate = _compress_onto(constraints, plan, request, original, baseline, analysis, dataset, device, stages)

    with stages.run("deliver"):
        delivery = deliver(original, candidate.network, request.outputs, output_folder)
        measured = _require_agreement(candidate.network, profile(candidate.network).costs, "The delivered network")
        result = compose_result(
            request=dataclasses.asdict(request),
            original=original,
            compressed=candidate.network,
            baseline=baseline,
            measured=measured,
            constraints=constraints,
            analysis=analysis,
            plan=candidate.plan,
            equivalence=candidate.equivalence,
            recovered=candidate.recovered,
            delivery=delivery,
            device=str(device),
            input_sha256=_sha256(request.model_path),
            seconds=time.monotonic() - started,
        )
        _require_met(result, request)
        delivery.write_report(result)
    return result


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
            request.dataset_path, normalization=request.normalization, scale=request.scale, seed=request.seed
        )
        check_fits(dataset, original)
        check_baseline(original, dataset, device=device)
    labelled = dataset is not None and dataset.labelled
    if not labelled and any(value for value in request.recovery.values()):
        raise EngineError(
            "dataset_invalid",
            "recovery asks for training, which needs a labelled dataset. Give labels, or leave recovery out.",
            param="/recovery",
        )
    if request.max_accuracy_drop is not None and not labelled:
        raise EngineError(
            "dataset_invalid",
            "accuracy.max_drop can only be kept with a labelled dataset to measure it on. Give labels, or leave it out.",
            param="/accuracy",
        )
    return dataset


def _compress_onto(
    constraints: Sequence[Constraint],
    plan: Plan,
    request: CompressionRequest,
    original: Network,
    baseline: Profile,
    analysis: ChannelAnalysis,
    dataset: ImageDataset | None,
    device: torch.device,
    stages: _Stages,
) -> Candidate:
    """Apply `plan`, verify and recover; with an accuracy floor and best effort, plan again until the floor holds."""
    relaxations = RELAXATIONS if request.max_accuracy_drop is not None and request.on_unmet == "best_effort" else (0.0,)
    for relaxation in relaxations:
        if relaxation:
            with stages.run("plan"):
                relaxed = tuple(_relax(constraint, baseline.costs, relaxation) for constraint in constraints)
                plan = _plan(relaxed, request, original, analysis)
        with stages.run("apply"):
            pruned = apply(original, analysis, plan.keep)
            _require_agreement(pruned, plan.predicted, "The plan")
        with stages.run("verify"):
            equivalence = verify(original, analysis, plan.keep, pruned, seed=request.seed)
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
            config = RecoveryConfig(**request.recovery)
            recovered = recover(
                pruned,
                original,
                dataset,
                config,
                kept=kept_indices(analysis, plan.keep),
                seed=request.seed,
                device=device,
                progress=stages.listener,
            )
        drop = _accuracy_drop(recovered, request)
        if drop is None or drop <= request.max_accuracy_drop:
            return Candidate(recovered.network, plan, equivalence, recovered)
    raise EngineError(
        "accuracy_floor",
        f"Within the budget, test accuracy falls by {drop:.4f}, more than accuracy.max_drop = "
        f"{request.max_accuracy_drop:g}. Raise the caps, allow a larger drop, train longer (recovery.epochs), or use "
        'on_unmet "best_effort" to have the budget relaxed until the floor holds.',
        param="/accuracy/max_drop",
        details={"accuracy_drop": drop, "costs": plan.predicted.as_dict()},
    )


def _disagreement(equivalence: Equivalence) -> str:
    """Why verification failed, in words."""
    if equivalence.problem is not None:
        return equivalence.problem
    return f"relative error {equivalence.max_relative_error:.1e} at {equivalence.worst}"


def _accuracy_drop(recovered: Recovered, request: CompressionRequest) -> float | None:
    """What the accuracy floor limits; None without a floor.

    One network is held against the floor by its test accuracy, which decides nothing but whether it is delivered. Where
    networks of several budgets are tried until one passes, that is a selection, so it looks at validation only: careful
    where the original was trained on those images, since it then scores better on them than on any others.
    """
    if request.max_accuracy_drop is None or recovered.accuracy_original is None:
        return None
    if request.on_unmet == "best_effort":
        return recovered.validation_drop
    return recovered.accuracy_original - recovered.accuracy_after


def _plan(
    constraints: Sequence[Constraint], request: CompressionRequest, original: Network, analysis: ChannelAnalysis
) -> Plan:
    options = dict(request.methods[0])
    method = get_method(options.pop("type"))
    config = method.config(options)
    scores = method.scores(original, analysis, config, request.seed)
    plan_options = method.plan_options(config)
    try:
        return plan_widths(analysis, scores, constraints, plan_options)
    except EngineError as error:
        if error.code == "target_infeasible" and request.on_unmet == "best_effort":
            return smallest_plan(analysis, scores, constraints, plan_options)
        raise


def _relax(constraint: Constraint, baseline: Costs, fraction: float) -> Constraint:
    distance = max(0, constraint.value(baseline) - constraint.limit)
    return dataclasses.replace(constraint, limit=constraint.limit + round(fraction * distance))


def _require_agreement(network: Network, expected: Costs, what: str) -> Costs:
    """Count the network again by other means than the analysis; a budget kept by a wrong count is not kept."""
    counted = independent_costs(network)
    if counted != expected:
        raise EngineError(
            "internal",
            f"{what} says {expected.as_dict()} and an independent count says {counted.as_dict()}; nothing is delivered.",
        )
    return counted


def _require_met(result: Mapping[str, Any], request: CompressionRequest) -> None:
    if result["met"] or request.on_unmet == "best_effort":
        return
    missed = [c for c in result["constraints"] if not c["met"]]
    raise EngineError("target_unmet", f"The delivered network misses {missed}.", details={"result": dict(result)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Stages:
    """Tells the listener where the pipeline is."""

    def __init__(self, listener: Progress) -> None:
        self.listener = listener

    @contextmanager
    def run(self, stage: str) -> Iterator[None]:
        self.listener(ProgressEvent(stage, "running"))
        yield
        self.listener(ProgressEvent(stage, "succeeded"))
