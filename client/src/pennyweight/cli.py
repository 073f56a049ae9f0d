"""`pennyweight`: compress a checkpoint from the command line through a Pennyweight service.

Exit codes: 0 ok, 2 usage, 3 budget unmet or infeasible, 4 failed, 130 interrupted (the job goes on).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from pennyweight.client import TERMINAL, Client
from pennyweight.errors import ApiError, JobFailed, PennyweightError
from pennyweight.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNMET, EXIT_USAGE, exit_code
from pennyweight.options import (
    OptionError,
    parse_budget,
    parse_input_shape,
    parse_json_object,
    parse_method,
    parse_normalization,
)
from pennyweight.stage_bar import StageBar, duration
from pennyweight.tables import count, result_table
from pennyweight.terminal import console, print_error

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
jobs_app = typer.Typer(no_args_is_help=True, help="List, show, follow and cancel jobs.")
app.add_typer(jobs_app, name="jobs")

Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="PENNYWEIGHT_URL", help="The service. [default: http://127.0.0.1:8000]", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
JobId = Annotated[str, typer.Argument(help="A job's id, job_…")]

err = console(stderr=True)
out = console()


def main() -> None:
    """Entry point of the `pennyweight` command."""
    app()


@contextmanager
def _reporting_errors() -> Iterator[None]:
    """One line and an exit code instead of a traceback for whatever a user can meet."""
    try:
        yield
    except OptionError as error:
        _stop(str(error), EXIT_USAGE)
    except JobFailed as error:
        _stop(f"{error.job_id} failed ({error.code}): {error}", exit_code(error.code))
    except ApiError as error:
        request = f"  (request {error.request_id})" if error.request_id else ""
        _stop(f"{error}{request}", EXIT_USAGE if error.status in (400, 413, 415, 422) else EXIT_FAILED)
    except (PennyweightError, TimeoutError) as error:
        _stop(str(error), EXIT_FAILED)
    except FileNotFoundError as error:
        _stop(f"{error.filename}: there is no such file.", EXIT_USAGE)
    except OSError as error:
        _stop(f"{error.filename or ''}: {error.strerror or error}", EXIT_FAILED)


def _stop(message: str, code: int) -> None:
    print_error(err, message)
    raise typer.Exit(code)


@app.command()
def compress(
    model: Annotated[Path | None, typer.Argument(help="The checkpoint: .safetensors, .pt, .pth, .th.")] = None,
    url: Url = None,
    architecture: Annotated[str | None, typer.Option(help="A name from `pennyweight architectures`.")] = None,
    architecture_args: Annotated[str | None, typer.Option(help="JSON object, e.g. '{\"depth\": 20}'.")] = None,
    input_shape: Annotated[str | None, typer.Option(help="Without the batch, e.g. 3x32x32.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Labelled images: .npz, .parquet, or a .tar of Parquet shards.")
    ] = None,
    normalization: Annotated[
        str | None, typer.Option(help="mean/std per channel, e.g. 0.49,0.48,0.45/0.25,0.24,0.26, or JSON.")
    ] = None,
    params: Annotated[str | None, typer.Option(help="Cap on parameters: 100k or 40%.")] = None,
    flops: Annotated[str | None, typer.Option(help="Cap on FLOPs (2 × MACs): 60M or 40%.")] = None,
    macs: Annotated[str | None, typer.Option(help="Cap on multiply-accumulates: 30M or 40%.")] = None,
    memory: Annotated[str | None, typer.Option(help="Cap on memory: 2MB, 60%, weights:1MB or activations:50%.")] = None,
    method: Annotated[
        str | None, typer.Option(help="A name from `pennyweight methods`, e.g. magnitude:round_to=8.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of recovery training; chosen by the service if left out.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Largest loss of accuracy allowed, as a fraction: 0.01.")
    ] = None,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Deliver the nearest result where a cap cannot be met.")
    ] = False,
    outputs: Annotated[str | None, typer.Option(help="Comma-separated: onnx,safetensors,report.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or gpu.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    name: Annotated[str | None, typer.Option(help="A name to find the job by.")] = None,
    clone: Annotated[
        str | None, typer.Option(help="Take model, dataset and options from this job; options given here win.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end (implied by -o).")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the artifacts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a checkpoint and a budget; get a smaller network that meets it."""
    with _reporting_errors(), Client(url) as client:
        options = _given(
            name=name,
            budget=parse_budget({"params": params, "flops": flops, "macs": macs, "memory": memory}) or None,
            methods=[parse_method(method)] if method else None,
            recovery={"epochs": epochs} if epochs is not None else None,
            accuracy={"max_drop": max_drop} if max_drop is not None else None,
            on_unmet="best_effort" if best_effort else None,
            outputs=[part.strip() for part in outputs.split(",")] if outputs else None,
            device=device,
            seed=seed,
        )
        if clone is None:
            if model is None:
                raise OptionError("give a checkpoint to compress, or --clone with a job's id")
            if "budget" not in options:
                raise OptionError(
                    "give at least one cap: --params, --flops, --macs or --memory, for example --flops 40%"
                )
            with _upload_bar() as on_bytes:
                job = client.submit(
                    model,
                    options,
                    architecture=architecture,
                    architecture_args=parse_json_object("--architecture-args", architecture_args)
                    if architecture_args
                    else None,
                    input_shape=parse_input_shape(input_shape) if input_shape else None,
                    dataset_path=dataset,
                    normalization=parse_normalization(normalization) if normalization else None,
                    on_bytes=on_bytes,
                )
        else:
            if model is not None or dataset is not None:
                raise OptionError("--clone takes model and dataset from the job; leave MODEL and --dataset out")
            request = _given(**client.job(clone)["request"])
            job = client.create_job(**_renamed({**request, **options}))
        err.print(f"{job['id']}  {job['links']['self']}")
        if wait or output is not None:
            job = _follow(client, job["id"], quiet=as_json)
        if output is not None:
            paths = client.download(job["id"], output)
            err.print(f"{len(paths)} files in {output}")
        if as_json:
            print(json.dumps(job, indent=2))
        elif job["status"] in TERMINAL:
            out.print(result_table(job["result"]))
        else:
            err.print(f"Follow it with: pennyweight jobs logs {job['id']}")
        if job["status"] == "succeeded" and not job["result"]["met"]:
            raise typer.Exit(EXIT_UNMET)


@jobs_app.command("ls")
def list_jobs(
    url: Url = None,
    status: Annotated[
        str | None, typer.Option(help="queued, running, cancelling, succeeded, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest jobs."""
    with _reporting_errors(), Client(url) as client:
        jobs = list(client.jobs(status=status, limit=limit))
        if as_json:
            print(json.dumps(jobs, indent=2))
            return
        if not jobs:
            err.print("No jobs yet. Start one with: pennyweight compress MODEL --flops 40%")
            return
        table = Table("job", "status", "name", "budget", "created", box=None)
        for job in jobs:
            table.add_row(
                job["id"],
                _status(job),
                job.get("name") or "",
                _budget(job["request"]["budget"]),
                job["created_at"][:19].replace("T", " "),
            )
        out.print(table)


@jobs_app.command("show")
def show_job(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """One job: its state, its result or its error."""
    with _reporting_errors(), Client(url) as client:
        job = client.job(job_id)
        if as_json:
            print(json.dumps(job, indent=2))
            return
        out.print(Text.assemble(f"{job['id']}  ", _status(job), f"  {job.get('name') or ''}"))
        if job["error"]:
            out.print(f"{job['error']['code']}: {job['error']['message']}")
        if job["result"]:
            out.print(result_table(job["result"]))


@jobs_app.command("logs")
def follow_job(job_id: JobId, url: Url = None) -> None:
    """A job's events; follows it while it runs."""
    with _reporting_errors(), Client(url) as client:
        for event in client.events(job_id):
            data = {key: value for key, value in (event.get("data") or {}).items() if value is not None}
            words = " ".join(f"{key}={value}" for key, value in data.items() if not isinstance(value, (dict, list)))
            out.print(f"{event['at'][:19].replace('T', ' ')}  {event['type']:<18} {words}")
        if client.job(job_id)["status"] not in TERMINAL:
            _follow(client, job_id, quiet=False)
            out.print(f"{job_id} succeeded")


@jobs_app.command("cancel")
def cancel_job(job_id: JobId, url: Url = None) -> None:
    """Stop a job."""
    with _reporting_errors(), Client(url) as client:
        out.print(f"{job_id} is {client.cancel(job_id)['status']}")


@jobs_app.command("download")
def download_job(
    job_id: JobId,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the artifacts.")],
    url: Url = None,
) -> None:
    """Fetch a job's artifacts, each checked against its sha256."""
    with _reporting_errors(), Client(url) as client:
        for path in client.download(job_id, output):
            out.print(str(path))


@app.command()
def methods(url: Url = None, as_json: AsJson = False) -> None:
    """The compression methods that the service offers."""
    _print_catalogue(url, as_json, lambda client: client.methods(), "type")


@app.command()
def architectures(
    search: Annotated[
        list[str] | None, typer.Argument(help="Words that the name or title must have, e.g. `timm resnet50`.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """The architectures whose checkpoints the service understands."""
    words = " ".join(search) if search else None
    _print_catalogue(url, as_json, lambda client: client.architectures(words), "name")


def _print_catalogue(url: str | None, as_json: bool, read: Callable[[Client], list[dict[str, Any]]], key: str) -> None:
    with _reporting_errors(), Client(url) as client:
        entries = read(client)
        if as_json:
            print(json.dumps(entries, indent=2))
            return
        table = Table(key, "", box=None)
        for entry in entries:
            table.add_row(entry[key], entry["title"])
        out.print(table)


def _follow(client: Client, job_id: str, *, quiet: bool) -> dict[str, Any]:
    """Wait with a stage bar. Ctrl-C ends the waiting and leaves the job alone."""
    try:
        with StageBar(err) as bar:
            return client.wait(job_id, on_change=None if quiet else bar)
    except KeyboardInterrupt:
        err.print(
            f"\nStopped waiting; {job_id} goes on. See it with `pennyweight jobs show {job_id}`, "
            f"stop it with `pennyweight jobs cancel {job_id}`."
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _upload_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes, shown on a terminal only."""
    with Progress(
        "uploading",
        *Progress.get_default_columns()[1:3],
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _renamed(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_id" if key == "model" else key: value for key, value in request.items()}


def _status(job: Mapping[str, Any]) -> Text:
    colour = {"succeeded": "green", "failed": "red", "running": "cyan", "cancelled": "yellow"}.get(
        job["status"], "default"
    )
    words = Text.assemble((job["status"], colour))
    progress = job.get("progress") or {}
    if job["status"] == "running":
        words.append(f" {progress.get('fraction') or 0:.0%} {job.get('stage') or ''}")
        if progress.get("eta_s") is not None:
            words.append(f", about {duration(progress['eta_s'])} left")
    if job["status"] == "failed" and job.get("error"):
        words.append(f" ({job['error']['code']})")
    return words


def _budget(budget: Mapping[str, Any]) -> str:
    words = []
    for metric, cap in budget.items():
        if cap is None:
            continue
        limit = f"{cap['max_ratio']:.4g}×" if cap.get("max_ratio") is not None else count(cap["max"])
        words.append(f"{metric} ≤ {limit}")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
