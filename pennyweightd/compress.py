"""`pennyweightd compress`: the engine on one machine, without a server.

Options and exit codes mirror the client's `pennyweight compress`, so that a pipeline can swap one for the other.
Unlike the service it runs in this very process: use it on checkpoints of your own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pennyweight import arguments
from pennyweight.arguments import require_writable
from pennyweight.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNMET, EXIT_USAGE, exit_code
from pennyweight.option_groups import grouped
from pennyweight.options import OptionError
from pennyweight.tables import result_table
from pennyweight.terminal import console, print_error
from pydantic import ValidationError
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pennyweightd import resuming
from pennyweightd.failures import Refusal, require_engine
from store.contract import Conversion, JobOptions, Normalization

if TYPE_CHECKING:
    from core.engine import CompressionRequest
    from core.progress import ProgressEvent

# What the engine refuses and a server would have refused at once, with a 422.
USAGE_CODES = ("invalid_request", "unknown_architecture")

err = console(stderr=True)
out = console()


@grouped
def compress(
    model: Annotated[Path, typer.Argument(help="The checkpoint: .safetensors, .pt, .pth, .th, .onnx, .pt2.")],
    *,
    about_model: arguments.AboutModel,
    about_dataset: arguments.AboutDataset,
    about_job: arguments.AboutJob,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the artifacts; new or empty.")] = Path(
        "out"
    ),
    as_json: arguments.AsJson = False,
) -> None:
    """Compress a checkpoint with the engine alone: no server, no database."""
    with _explained(as_json):
        require_engine()
        asked = about_job.fields()
        if "budget" not in asked:
            raise OptionError(arguments.NO_BUDGET)
        options = JobOptions.model_validate(asked)
        files = _files(model, about_model, about_dataset)
        for path in filter(None, (model, about_dataset.dataset, about_job.plan)):
            if not path.is_file():
                raise OptionError(f"{path}: {'this is a folder' if path.is_dir() else 'there is no such file'}")
        if about_dataset.dataset is None and (options.recovery.trains or options.accuracy is not None):
            raise OptionError(
                "--epochs and --recovery need images, --max-drop labelled ones: give --dataset, or leave them out"
            )
        _require_empty(output)
        require_writable("--output", output)
        result = _run(options, files, output)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        out.print(result_table(result))
        err.print(f"{sum(1 for _ in output.iterdir())} files in {output}")
    if not result["met"]:
        raise typer.Exit(EXIT_UNMET)


class Stopped(Exception):
    """No result. `document` tells of it in JSON, `status` is the exit code."""

    def __init__(self, message: str, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.document = dict(document)


@contextmanager
def _explained(as_json: bool) -> Iterator[None]:
    """Whatever a user can meet in the block ends as one message and an exit code, and as JSON where that was asked for."""
    try:
        yield
    except (OptionError, ValidationError) as error:
        stopped = _refused(_words(error), EXIT_USAGE)
    except Refusal as error:
        stopped = _refused(str(error), EXIT_FAILED)
    except Stopped as error:
        stopped = error
    except OSError as error:
        stopped = _refused(f"{error.filename or ''}: {error.strerror or error}", EXIT_USAGE)
    else:
        return
    print_error(err, str(stopped))
    if as_json:
        print(json.dumps(stopped.document, indent=2))
    raise typer.Exit(stopped.status)


def _refused(message: str, status: int) -> Stopped:
    return Stopped(message, status, {"code": "usage" if status == EXIT_USAGE else "failed", "message": message})


def _files(model: Path, about_model: arguments.AboutModel, about_dataset: arguments.AboutDataset) -> dict[str, Any]:
    """What `compression_request` takes of them. Raises OptionError, ValidationError."""
    network, images = about_model.fields(), about_dataset.fields()
    return {
        "model_path": model,
        "architecture": network.get("architecture"),
        "architecture_args": network.get("architecture_args", {}),
        "input_shape": network.get("input_shape"),
        "dataset_path": about_dataset.dataset,
        "normalization": Normalization.model_validate(images["normalization"]) if "normalization" in images else None,
        "scale": images.get("scale"),
        "convert": Conversion.model_validate(images["convert"]) if "convert" in images else None,
    }


def _run(options: JobOptions, files: Mapping[str, Any], output: Path) -> dict[str, Any]:
    # torch takes seconds to import; usage mistakes should not wait for it.
    from core.engine import compress as run_engine
    from core.errors import EngineError
    from core.recovery.processes import ProcessLost
    from worker.runner.translate import compression_request

    request: CompressionRequest = compression_request(options, **files)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Artifacts appear all at once or not at all.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as staging, _Stages() as stages:
            checkpoint = resuming.checkpoint_for(
                request, output, lambda: err.print("Going on from where this command was interrupted.")
            )
            result = run_engine(request, Path(staging), stages.show, checkpoint)
            output.mkdir(exist_ok=True)
            for path in Path(staging).iterdir():
                path.replace(output / path.name)
        resuming.forget(output)
    except EngineError as error:
        resuming.forget(output)
        status = EXIT_USAGE if error.code in USAGE_CODES else exit_code(error.code)
        document = {"code": error.code, "message": error.message, "param": error.param, "details": error.details}
        raise Stopped(f"{error.code}: {error.message}", status, document) from error
    except ProcessLost as error:
        raise _refused(f"{error} The same command goes on from its last checkpoint.", EXIT_FAILED) from error
    except OSError as error:
        raise _refused(f"{error.filename or output}: {error.strerror or error}", EXIT_FAILED) from error
    except KeyboardInterrupt:
        kept = "the same command goes on from its last checkpoint" if resuming.place(output).exists() else ""
        raise _refused(f"interrupted; {kept or 'nothing was written'}", EXIT_INTERRUPTED) from None
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


def _words(error: OptionError | ValidationError) -> str:
    if isinstance(error, OptionError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
