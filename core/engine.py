"""The engine: one pipeline, read from top to bottom.

    intake → profile → plan → apply → verify → recover → encode → deliver

`compress` takes a checkpoint and a budget and leaves a smaller network in a folder, with the proof that it meets every
cap and that the surgery was correct; or it raises `EngineError` with the reason. `propose` stops after the plan and
says what it would do. The engine knows no web, database or cloud.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.agreement import require_agreement, require_equal, require_same_function
from core.analysis import profile
from core.candidate import choose, compress_onto
from core.chain import Chain
from core.checkpoint import Checkpoint
from core.choice import Chooser, given_widths
from core.deliver import NO_CALIBRATION, deliver, require_outputs
from core.encoding.options import EncodingOptions
from core.encoding.steering import Steering
from core.errors import EngineError
from core.latency import analytic, delivered_latency, guide_for, guided
from core.methods import RewritingMethod, get_method
from core.network import Network
from core.origin import Origin, load_origin
from core.progress import Progress, Stages, silent
from core.proposal import compose_proposal
from core.recovery import ImageDataset, RecoveryConfig, check_baseline, check_fits, load_dataset
from core.report import compose_result
from core.request import CompressionRequest
from core.rewriting import Rewriter
from core.rivals import AUTO, RIVAL, Rivals
from core.run import Run
from core.surgery import apply

__all__ = ["CompressionRequest", "compress", "propose", "resolve_device"]


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
    started = time.monotonic()
    torch.manual_seed(request.seed)
    stages = Stages(progress)
    device = resolve_device(request.device)
    recovery = RecoveryConfig(**request.recovery)
    origin = load_origin(request, stages)
    require_outputs(origin.upload, request.outputs)
    require_agreement(origin.upload, origin.costs, "The profile")
    require_same_function(origin.upload, origin.network, origin.folded, request.seed)
    constraints = request.budget.constraints(origin.costs)
    steering = _steering(request, origin)
    with stages.run("plan"):
        scored_by_data = _needs_data(request)
        # Unless scores look at images, an infeasible budget is refused before a single one is read.
        dataset = _load_dataset(request, origin.upload, device) if scored_by_data else None
        chooser = _with_rivals(_chooser(request, origin, dataset, device), request, origin, device)
        try:
            choice = choose(chooser, steering.planned(constraints), request)
        except EngineError as refusal:
            eased = steering.eased(refusal)
            if eased is None:
                raise
            steering, choice = eased, choose(chooser, eased.planned(constraints), request)
        if not scored_by_data:
            dataset = _load_dataset(request, origin.upload, device)
    run = Run(request, origin, dataset, device, recovery, stages, checkpoint or Checkpoint())
    candidate = compress_onto(run, constraints, choice, chooser, steering)
    made, network = candidate.made, candidate.encoded.network

    with stages.run("deliver"):
        delivery = deliver(
            origin.network,
            network,
            request.outputs,
            output_folder,
            compact=candidate.encoded.compact,
            onnx_opset=request.onnx_opset,
            dataset=dataset,
        )
        costs = require_agreement(network, profile(network).costs, "The delivered network")
        latency = delivered_latency(network, delivery.latency, constraints)
        measured = dataclasses.replace(
            costs, size_bytes=delivery.size_bytes, latency_ms=latency.p50 if latency else None
        )
        result = compose_result(
            request=dataclasses.asdict(request),
            original=origin.upload,
            compressed=network,
            baseline=origin.profile,
            baseline_costs=origin.costs,
            measured=measured,
            constraints=constraints,
            choice=made.choice,
            folded=origin.folded,
            equivalence=made.equivalence,
            recovered=made.recovered,
            sparse=made.sparse,
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
    require_outputs(origin.upload, request.outputs)
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
    scored = any(get_method(method["type"]).needs_data for method in request.methods)
    return scored and request.dataset_path is not None


def _chooser(
    request: CompressionRequest,
    origin: Origin,
    dataset: ImageDataset | None,
    device: torch.device,
    *,
    with_size: bool = False,
) -> Chooser | Rewriter:
    if len(request.methods) > 1:
        return Chain(request, origin, dataset, device)
    (entry,) = request.methods
    if isinstance(get_method(entry["type"]), RewritingMethod):
        return Rewriter(request, origin, device, method=entry)
    return Chooser(
        origin.network,
        entry,
        seed=request.seed,
        given=given_widths(request.plan),
        with_size=with_size or request.budget.has("size"),
        dataset=dataset,
        device=device,
    )


def _with_rivals(
    chooser: Chooser | Rewriter, request: CompressionRequest, origin: Origin, device: torch.device
) -> Chooser | Rewriter | Rivals:
    """`auto` as such, with images, tries another method beside its own, unless something asks for widths."""
    widths = request.plan is not None or request.budget.has("latency_ms")
    if request.methods != (AUTO,) or request.dataset_path is None or widths or not isinstance(chooser, Chooser):
        return chooser
    return Rivals(chooser, Rewriter(request, origin, device, method=RIVAL))


def _steering(request: CompressionRequest, origin: Origin) -> Steering:
    options = EncodingOptions(**request.encoding)
    return Steering.of(
        options, request.outputs, origin.network, capped=request.budget.has("size"), opset=request.onnx_opset
    )


def _require_met(result: Mapping[str, Any], request: CompressionRequest) -> None:
    if result["met"] or request.on_unmet == "best_effort":
        return
    missed = [cap for cap in result["constraints"] if not cap["met"]]
    said = ", ".join(f"{cap['metric']} {cap['value']:,} where {cap['limit']:,} is the limit" for cap in missed)
    raise EngineError(
        "target_unmet",
        f'Measured on the finished network: {said}. Raise the cap, or use on_unmet "best_effort" to have it all the same.',
        param=f"/budget/{missed[0]['metric']}",
        details={"result": dict(result)},
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
