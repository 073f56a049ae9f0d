"""The command table of the real runner: what each kind of task does with the engine.

Here contract JSON becomes the engine's dataclasses and back. torch and the engine are imported inside the functions,
which run confined.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.contract import Catalogue, DatasetInspection, JobResult, ModelInspection, PlanOutcome, TrainingEpoch
from worker.protocol import (
    CHECKPOINT_FILE,
    MAX_MESSAGE_CHARACTERS,
    OUTPUT_FOLDER,
    CheckpointMessage,
    EpochMessage,
    ProgressMessage,
    ResumedMessage,
    Task,
)
from worker.runner.session import Command, Tell

if TYPE_CHECKING:
    from core.checkpoint import Checkpoint
    from core.engine import CompressionRequest
    from core.progress import ProgressEvent

REPORTED_LIBRARIES = ("torch", "numpy", "scipy", "onnx", "onnxruntime", "safetensors", "pyarrow")


def prepare() -> None:
    """Import what every task needs; a few seconds that a runner started early has behind it."""
    importlib.import_module("core.engine")


def run_job(task: Task, folder: Path, tell: Tell) -> Mapping[str, Any]:
    from core.engine import compress

    _use_threads(task.threads)
    request = _request(task, folder)
    checkpoint = _checkpoint(task, request, folder, tell)
    result = compress(request, folder / OUTPUT_FOLDER, _listener(tell), checkpoint)
    return JobResult.model_validate(result).model_dump(mode="json")


def _checkpoint(task: Task, request: CompressionRequest, folder: Path, tell: Tell) -> Checkpoint:
    """What an earlier attempt at this job left, or nothing yet; the supervisor hears of every new file."""
    from core.checkpoint import Checkpoint, fingerprint
    from core.engine import resolve_device

    if task.checkpoint_interval_s is None:
        return Checkpoint()
    announced = False

    def asked() -> bool:
        # Whoever looks here for the first time can write one from now on.
        nonlocal announced
        if not announced:
            announced = True
            tell(CheckpointMessage(state="possible"))
        return tell.checkpoint_asked.is_set()

    def written() -> None:
        tell.checkpoint_asked.clear()
        tell(CheckpointMessage(state="written"))

    def resumed(step: str, number: int | None) -> None:
        tell(ResumedMessage(step=step, number=number))

    digests = {
        "request": task.request_sha256,
        "model": task.model.sha256,
        "dataset": task.dataset.sha256 if task.dataset else None,
    }
    return Checkpoint(
        folder / CHECKPOINT_FILE,
        fingerprint(digests, resolve_device(request.device).type),
        interval_s=task.checkpoint_interval_s,
        asked=asked,
        written=written,
        resumed=resumed,
    )


def make_plan(task: Task, folder: Path, tell: Tell) -> Mapping[str, Any]:
    """What a job would do, on the CPU whatever the job asks for: planning needs no other device."""
    from core.engine import propose

    _use_threads(task.threads)
    request = dataclasses.replace(_request(task, folder), device="cpu")
    return PlanOutcome.model_validate(propose(request, _listener(tell))).model_dump(mode="json")


def _listener(tell: Tell) -> Callable[[ProgressEvent], None]:
    def progress(event: ProgressEvent) -> None:
        message = event.message[:MAX_MESSAGE_CHARACTERS] if event.message else None
        tell(
            ProgressMessage(stage=event.stage, status=event.status, step=event.step, steps=event.steps, message=message)
        )
        if event.epoch is not None:
            tell(EpochMessage(epoch=TrainingEpoch(**dataclasses.asdict(event.epoch))))

    return progress


def _request(task: Task, folder: Path) -> CompressionRequest:
    """The task's job as the engine takes it, its files where they lie."""
    from worker.runner.translate import compression_request

    model, dataset = task.model, task.dataset
    return compression_request(
        task.request,
        model_path=folder / model.file,
        architecture=model.architecture,
        architecture_args=model.architecture_args,
        input_shape=model.input_shape,
        dataset_path=folder / dataset.file if dataset else None,
        normalization=dataset.normalization if dataset else None,
        scale=dataset.scale if dataset else None,
        convert=dataset.convert if dataset else None,
        request_sha256=task.request_sha256,
    )


def inspect_model(task: Task, folder: Path, tell: Tell) -> Mapping[str, Any]:
    from core.analysis import profile
    from core.intake import file_format, load_network

    _use_threads(task.threads)
    model = task.model
    tell(ProgressMessage(stage="intake", status="running"))
    network = load_network(
        folder / model.file,
        architecture=model.architecture,
        architecture_args=model.architecture_args,
        input_shape=model.input_shape,
    )
    tell(ProgressMessage(stage="profile", status="running"))
    found = profile(network)
    shapes = {spec.name: list(spec.shape) for spec in network.inputs}
    inspection = ModelInspection.model_validate(
        {
            "format": file_format(folder / model.file),
            "architecture": network.architecture,
            "architecture_args": dict(network.architecture_args),
            "input_shape": next(iter(shapes.values())) if len(shapes) == 1 else shapes,
            "profile": {
                **found.costs.as_dict(),
                "layers": [
                    {
                        "name": layer.name,
                        "type": layer.type,
                        "params": layer.params,
                        "macs": layer.macs,
                        "activation_bytes": layer.activation_bytes,
                        "output_shape": list(layer.output_shape),
                    }
                    for layer in found.layers
                ],
            },
        }
    )
    return inspection.model_dump(mode="json")


def inspect_dataset(task: Task, folder: Path, tell: Tell) -> Mapping[str, Any]:
    from core.recovery import inspect_dataset as inspect
    from worker.runner.translate import conversion, statistics

    _use_threads(task.threads)
    dataset = task.dataset
    tell(ProgressMessage(stage="intake", status="running"))
    found = inspect(
        folder / dataset.file,
        normalization=statistics(dataset.normalization),
        scale=dataset.scale,
        conversion=conversion(dataset.convert),
    )
    counts = found.class_counts
    inspection = DatasetInspection.model_validate(
        {
            "format": found.format,
            "classes": found.classes,
            "class_names": None if found.class_names is None else list(found.class_names),
            "splits": dict(found.splits),
            "class_counts": None
            if counts is None
            else {name: {"min": of.least, "max": of.most, "counts": of.each} for name, of in counts.items()},
            "image_shape": list(found.image_shape),
            "mean": list(found.mean),
            "std": list(found.std),
        }
    )
    return inspection.model_dump(mode="json")


def catalogue(task: Task, folder: Path, tell: Tell) -> Mapping[str, Any]:
    """What this worker can do: methods, architectures, devices, versions."""
    import torch

    from core.architectures import architecture_infos
    from core.methods import method_infos
    from core.version import VERSION

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    published = Catalogue(
        version=VERSION,
        methods=[
            {
                "type": method.type,
                "title": method.title,
                "description": method.description,
                "paper": method.paper,
                "kind": method.kind,
                "schema": method.schema,
            }
            for method in method_infos()
        ],
        architectures=[
            {
                "name": architecture.name,
                "title": architecture.title,
                "input_shape": list(architecture.input_shape),
                "args_schema": architecture.args_schema,
            }
            for architecture in architecture_infos()
        ],
        devices=devices,
        versions={"python": platform.python_version(), **_library_versions()},
    )
    return published.model_dump(mode="json", by_alias=True)


COMMANDS: Mapping[str, Command] = {
    "job": run_job,
    "plan": make_plan,
    "inspect_model": inspect_model,
    "inspect_dataset": inspect_dataset,
    "catalogue": catalogue,
}


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _library_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in REPORTED_LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions
