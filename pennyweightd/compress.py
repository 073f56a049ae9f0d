"""`pennyweightd compress`: the engine on one machine, without a server.

Options and exit codes mirror the client's `pennyweight compress`, so that a pipeline can swap one for the other.
Unlike the service it runs in this very process: use it on checkpoints of your own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pennyweight.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNMET, EXIT_USAGE, exit_code
from pennyweight.options import (
    OptionError,
    parse_budget,
    parse_input_shape,
    parse_json_object,
    parse_method,
    parse_normalization,
)
from pennyweight.tables import result_table
from pennyweight.terminal import console, print_error
from pydantic import ValidationError
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from store.contract import JobOptions, Normalization

if TYPE_CHECKING:
    from core.engine import CompressionRequest
    from core.progress import ProgressEvent

# What the engine refuses and a server would have refused at once, with a 422.
USAGE_CODES = ("invalid_request", "unknown_architecture")

err = console(stderr=True)
out = console()


def compress(
    model: Annotated[Path, typer.Argument(help="The checkpoint: .safetensors, .pt, .pth, .th.")],
    architecture: Annotated[str | None, typer.Option(help="e.g. cifar_resnet20.")] = None,
    architecture_args: Annotated[str | None, typer.Option(help="JSON object, e.g. '{\"depth\": 20}'.")] = None,
    input_shape: Annotated[str | None, typer.Option(help="Without the batch, e.g. 3x32x32.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Labelled images: .npz, .parquet, or a .tar of Parquet shards.")
    ] = None,
    normalization: Annotated[str | None, typer.Option(help="mean/std per channel, or JSON.")] = None,
    params: Annotated[str | None, typer.Option(help="Cap on parameters: 100k or 40%.")] = None,
    flops: Annotated[str | None, typer.Option(help="Cap on FLOPs (2 × MACs): 60M or 40%.")] = None,
    macs: Annotated[str | None, typer.Option(help="Cap on multiply-accumulates: 30M or 40%.")] = None,
    memory: Annotated[str | None, typer.Option(help="Cap on memory: 2MB, 60%, weights:1MB or activations:50%.")] = None,
    method: Annotated[str | None, typer.Option(help="e.g. magnitude:round_to=8.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of recovery training; chosen if left out.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Largest loss of accuracy allowed, as a fraction: 0.01.")
    ] = None,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Deliver the nearest result where a cap cannot be met.")
    ] = False,
    outputs: Annotated[str | None, typer.Option(help="Comma-separated: onnx,safetensors,report.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the artifacts; new or empty.")] = Path(
        "out"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compress a checkpoint with the engine alone: no server, no database."""
    try:
        budget = parse_budget({"params": params, "flops": flops, "macs": macs, "memory": memory})
        if not budget:
            raise OptionError("give at least one cap: --params, --flops, --macs or --memory, for example --flops 40%")
        options = JobOptions.model_validate(
            _given(
                budget=budget,
                methods=[parse_method(method)] if method else None,
                recovery={"epochs": epochs} if epochs is not None else None,
                accuracy={"max_drop": max_drop} if max_drop is not None else None,
                on_unmet="best_effort" if best_effort else None,
                outputs=[part.strip() for part in outputs.split(",")] if outputs else None,
                device=device,
                seed=seed,
            )
        )
        statistics = Normalization.model_validate(parse_normalization(normalization)) if normalization else None
        args = parse_json_object("--architecture-args", architecture_args) if architecture_args else {}
        shape = tuple(parse_input_shape(input_shape)) if input_shape else None
        for path in filter(None, (model, dataset)):
            if not path.is_file():
                raise OptionError(f"{path}: {'this is a folder' if path.is_dir() else 'there is no such file'}")
        if dataset is None and (epochs or max_drop is not None):
            raise OptionError("--epochs and --max-drop need labelled images: give --dataset, or leave them out")
        _require_empty(output)
    except (OptionError, ValidationError) as error:
        _stop(_words(error), EXIT_USAGE)
    result = _run(options, model, architecture, args, shape, dataset, statistics, output)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        out.print(result_table(result))
        err.print(f"{sum(1 for _ in output.iterdir())} files in {output}")
    if not result["met"]:
        raise typer.Exit(EXIT_UNMET)


def _run(
    options: JobOptions,
    model: Path,
    architecture: str | None,
    architecture_args: Mapping[str, Any],
    input_shape: tuple[int, ...] | None,
    dataset: Path | None,
    normalization: Normalization | None,
    output: Path,
) -> dict[str, Any]:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _stop(f"--output {output}: {error.strerror or error} ({error.filename})", EXIT_USAGE)
    # torch takes seconds to import; usage mistakes should not wait for it.
    from core.engine import compress as run_engine
    from core.errors import EngineError
    from worker.runner.translate import compression_request

    request: CompressionRequest = compression_request(
        options,
        model_path=model,
        architecture=architecture,
        architecture_args=architecture_args,
        input_shape=input_shape,
        dataset_path=dataset,
        normalization=normalization,
        scale=None,
    )
    try:
        # Artifacts appear all at once or not at all.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as staging, _Stages() as stages:
            result = run_engine(request, Path(staging), stages.show)
            output.mkdir(exist_ok=True)
            for path in Path(staging).iterdir():
                path.replace(output / path.name)
    except EngineError as error:
        _stop(f"{error.code}: {error.message}", EXIT_USAGE if error.code in USAGE_CODES else exit_code(error.code))
    except OSError as error:
        _stop(f"{error.filename or output}: {error.strerror or error}", EXIT_FAILED)
    except KeyboardInterrupt:
        _stop("interrupted; nothing was written", EXIT_INTERRUPTED)
    return result


class _Stages:
    """The engine's progress as one line on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None, detail="")

    def __enter__(self) -> _Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: ProgressEvent) -> None:
        self._progress.update(
            self._task,
            description=event.stage,
            completed=event.step or 0,
            total=event.steps,
            detail=event.message or "",
        )


def _require_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OptionError(f"--output {output}: this exists and is not an empty folder; name a new one")


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _words(error: OptionError | ValidationError) -> str:
    if isinstance(error, OptionError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def _stop(message: str, code: int) -> None:
    print_error(err, message)
    sys.exit(code)
