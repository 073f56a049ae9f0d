"""The options that both command lines share (`option_groups`), and the fields of the API that they become."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pennyweight.options import (
    OptionError,
    parse_budget,
    parse_convert,
    parse_encoding,
    parse_input_shape,
    parse_json_object,
    parse_method,
    parse_normalization,
    parse_recovery,
)
from pennyweight.plans import read_plan

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]

NO_BUDGET = (
    "give at least one cap: --params, --flops, --macs, --memory, --size or --latency-ms, for example --flops 40%"
)


@dataclass(frozen=True)
class AboutModel:
    """What a checkpoint is."""

    architecture: Annotated[str | None, typer.Option(help="A name from `pennyweight architectures`.")] = None
    architecture_args: Annotated[str | None, typer.Option(help="JSON object, e.g. '{\"depth\": 20}'.")] = None
    input_shape: Annotated[
        str | None, typer.Option(help="Without the batch, e.g. 3x32x32; of several inputs a=3x32x32,b=3x64x64.")
    ] = None

    def fields(self) -> dict[str, Any]:
        """Those that were given, as the API takes them. Raises OptionError."""
        args, shape = self.architecture_args, self.input_shape
        return given(
            architecture=self.architecture,
            architecture_args=parse_json_object("--architecture-args", args) if args else None,
            input_shape=parse_input_shape(shape) if shape else None,
        )


@dataclass(frozen=True)
class AboutDataset:
    """Images, and how to read them."""

    dataset: Annotated[
        Path | None,
        typer.Option(help="Images: .npz, .parquet, or a .tar, .tar.gz or .zip of class folders or Parquet shards."),
    ] = None
    normalization: Annotated[
        str | None, typer.Option(help="mean/std per channel, e.g. 0.49,0.48,0.45/0.25,0.24,0.26, or JSON.")
    ] = None
    scale: Annotated[float | None, typer.Option(help="Divisor of whole-number pixels; 255 if left out.")] = None
    convert: Annotated[
        str | None, typer.Option(help="What to do to encoded images: a size, grey or rgb, e.g. rgb,224x224.")
    ] = None

    def fields(self) -> dict[str, Any]:
        """How to read them, where it was given, as the API takes it. Raises OptionError."""
        return given(
            normalization=parse_normalization(self.normalization) if self.normalization else None,
            scale=self.scale,
            convert=parse_convert(self.convert) if self.convert else None,
        )


@dataclass(frozen=True)
class AboutJob:
    """What is to become of the model, and how."""

    params: Annotated[str | None, typer.Option(help="Cap on parameters: 100k or 40%.")] = None
    flops: Annotated[str | None, typer.Option(help="Cap on FLOPs (2 × MACs): 60M or 40%.")] = None
    macs: Annotated[str | None, typer.Option(help="Cap on multiply-accumulates: 30M or 40%.")] = None
    memory: Annotated[str | None, typer.Option(help="Cap on memory: 2MB, 60%, weights:1MB or activations:50%.")] = None
    size: Annotated[str | None, typer.Option(help="Cap on the weights file: 500kB or 40%.")] = None
    latency_ms: Annotated[
        str | None, typer.Option(help="Cap on ONNX Runtime's median, batch 1, one thread: 5 or 60%.")
    ] = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A name from `pennyweight methods`, e.g. magnitude:round_to=8; given again, a chain in that order.",
            show_default=False,
        ),
    ] = None
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="JSON with the widths to use, e.g. from `pennyweight plan -o`, edited."),
    ] = None
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of recovery training; chosen by the engine if left out.")
    ] = None
    recovery: Annotated[
        str | None,
        typer.Option(
            help="How to train: epochs=10,optimizer=adamw,ema_decay=0.999,mixup=0.2,precision=float32, or JSON."
        ),
    ] = None
    max_drop: Annotated[float | None, typer.Option(help="Largest loss of accuracy, as a fraction: 0.01.")] = None
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Deliver the nearest result where a cap cannot be met.")
    ] = False
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding",
            "--quantizer",
            help="How weights share values: cws, pws, uq or ecsq, e.g. ecsq:levels=16,prune=50, or JSON.",
        ),
    ] = None
    outputs: Annotated[
        str | None, typer.Option(help="Comma-separated, of onnx, onnx-int8, pt2, safetensors, pwt and report.")
    ] = None
    onnx_opset: Annotated[
        int | None, typer.Option("--onnx-opset", help="Opset of model.onnx, 13 to 26; 26 if left out.")
    ] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu or gpu.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None

    def fields(self) -> dict[str, Any]:
        """Those that were given, as the API takes them. Raises OptionError, OSError."""
        caps = {name: getattr(self, name) for name in ("params", "flops", "macs", "memory", "size", "latency_ms")}
        recovery = parse_recovery(self.recovery) if self.recovery else {}
        found = given(
            budget=parse_budget(caps) or None,
            methods=[parse_method(method) for method in self.method] if self.method else None,
            plan=read_plan(self.plan) if self.plan else None,
            recovery={**recovery, **given(epochs=self.epochs)} or None,
            accuracy={"max_drop": self.max_drop} if self.max_drop is not None else None,
            on_unmet="best_effort" if self.best_effort else None,
            encoding=parse_encoding(self.encoding) if self.encoding else None,
            outputs=[part.strip() for part in self.outputs.split(",")] if self.outputs else None,
            onnx={"opset": self.onnx_opset} if self.onnx_opset is not None else None,
            device=self.device,
            seed=self.seed,
        )
        try:
            json.dumps(found, allow_nan=False)
        except ValueError as error:
            raise OptionError("An option says nan or inf, where a number belongs") from error
        return found


def given(**values: Any) -> dict[str, Any]:
    """These values without those that are None."""
    return {key: value for key, value in values.items() if value is not None}


def require_writable(option: str, path: Path) -> None:
    """Raise OptionError unless the folder `path` can be written to, or made: before the work whose result goes there."""
    nearest = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise OptionError(f"{option} {path}: {nearest} is not a folder")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise OptionError(f"{option} {path}: {nearest} cannot be written to ({error.strerror})") from error
