"""The options that both command lines share, declared once, and the job that they describe."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pennyweight.options import OptionError, parse_budget, parse_encoding, parse_method, parse_recovery
from pennyweight.plans import read_plan

Architecture = Annotated[str | None, typer.Option(help="A name from `pennyweight architectures`.")]
ArchitectureArgs = Annotated[str | None, typer.Option(help="JSON object, e.g. '{\"depth\": 20}'.")]
InputShape = Annotated[
    str | None, typer.Option(help="Without the batch, e.g. 3x32x32; of several inputs a=3x32x32,b=3x64x64.")
]
DatasetFile = Annotated[
    Path | None,
    typer.Option(help="Images: .npz, .parquet, or a .tar, .tar.gz or .zip of class folders or Parquet shards."),
]
Normalization = Annotated[
    str | None, typer.Option(help="mean/std per channel, e.g. 0.49,0.48,0.45/0.25,0.24,0.26, or JSON.")
]
Scale = Annotated[float | None, typer.Option(help="What whole-number pixels are divided by; 255 if left out.")]
Convert = Annotated[
    str | None, typer.Option(help="What to do to encoded images: a size, grey or rgb, e.g. rgb,224x224.")
]
Params = Annotated[str | None, typer.Option(help="Cap on parameters: 100k or 40%.")]
Flops = Annotated[str | None, typer.Option(help="Cap on FLOPs (2 × MACs): 60M or 40%.")]
Macs = Annotated[str | None, typer.Option(help="Cap on multiply-accumulates: 30M or 40%.")]
Memory = Annotated[str | None, typer.Option(help="Cap on memory: 2MB, 60%, weights:1MB or activations:50%.")]
Size = Annotated[str | None, typer.Option(help="Cap on the weights file: 500kB or 40%.")]
LatencyMs = Annotated[str | None, typer.Option(help="Cap on ONNX Runtime's median, batch 1, one thread: 5 or 60%.")]
MethodNames = Annotated[
    list[str] | None,
    typer.Option(
        help="A name from `pennyweight methods`, e.g. magnitude:round_to=8; given again, a chain in that order.",
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="JSON with the widths to use, e.g. from `pennyweight plan -o`, edited.")
]
Epochs = Annotated[int | None, typer.Option(help="Epochs of recovery training; chosen by the engine if left out.")]
Recovery = Annotated[
    str | None,
    typer.Option(help="How to train: epochs=10,optimizer=adamw,ema_decay=0.999,mixup=0.2,precision=float32, or JSON."),
]
MaxDrop = Annotated[float | None, typer.Option(help="Largest loss of accuracy allowed, as a fraction: 0.01.")]
BestEffort = Annotated[
    bool, typer.Option("--best-effort", help="Deliver the nearest result where a cap cannot be met.")
]
Encoding = Annotated[
    str | None,
    typer.Option(
        "--encoding",
        "--quantizer",
        help="How weights share values: cws, pws, uq or ecsq, e.g. ecsq:levels=16,prune=50, or JSON.",
    ),
]
Outputs = Annotated[
    str | None, typer.Option(help="Comma-separated, of onnx, onnx-int8, pt2, safetensors, pwt and report.")
]
OnnxOpset = Annotated[int | None, typer.Option("--onnx-opset", help="Opset of model.onnx, 13 to 26; 26 if left out.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or gpu.")]
Priority = Annotated[int | None, typer.Option(help="0 to 100: jobs with a smaller one go first; 0 if left out.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]

NO_BUDGET = (
    "give at least one cap: --params, --flops, --macs, --memory, --size or --latency-ms, for example --flops 40%"
)


def job_options(
    *,
    params: str | None = None,
    flops: str | None = None,
    macs: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    latency_ms: str | None = None,
    method: Sequence[str] | None = None,
    plan: Path | None = None,
    epochs: int | None = None,
    recovery: str | None = None,
    max_drop: float | None = None,
    best_effort: bool = False,
    encoding: str | None = None,
    outputs: str | None = None,
    onnx_opset: int | None = None,
    device: str | None = None,
    priority: int | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """The fields of a job that these options give; those not given are left out. Raises OptionError, OSError."""
    caps = {"params": params, "flops": flops, "macs": macs, "memory": memory, "size": size, "latency_ms": latency_ms}
    return given(
        name=name,
        budget=parse_budget(caps) or None,
        methods=[parse_method(each) for each in method] if method else None,
        plan=read_plan(plan) if plan else None,
        recovery={**(parse_recovery(recovery) if recovery else {}), **given(epochs=epochs)} or None,
        accuracy={"max_drop": max_drop} if max_drop is not None else None,
        on_unmet="best_effort" if best_effort else None,
        encoding=parse_encoding(encoding) if encoding else None,
        outputs=[part.strip() for part in outputs.split(",")] if outputs else None,
        onnx={"opset": onnx_opset} if onnx_opset is not None else None,
        device=device,
        priority=priority,
        seed=seed,
    )


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
