"""`pennyweight`: compress a checkpoint from the command line through a Pennyweight service.

Exit codes: 0 ok, 2 usage, 3 budget unmet or infeasible, 4 failed, 130 interrupted (the job goes on).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pennyweight import arguments, cli_jobs, cli_unpack
from pennyweight.arguments import AboutDataset, AboutJob, AboutModel, AsJson, given, require_writable
from pennyweight.client import Client
from pennyweight.exit_codes import EXIT_UNMET
from pennyweight.option_groups import grouped
from pennyweight.options import OptionError
from pennyweight.session import Url, connected, err, follow, out, print_json, upload_bar
from pennyweight.tables import plan_view, result_table
from pennyweight.waiting import TERMINAL

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(cli_jobs.app, name="jobs")
app.command()(cli_unpack.unpack)

_MODEL_ID = re.compile(r"mdl_[0-9A-Z]{26}")
Checkpoint = Annotated[
    str | None,
    typer.Argument(help="The checkpoint (.safetensors, .pt, .pth, .th, .onnx, .pt2), or the id of an uploaded one."),
]
# One of these given again replaces its part of the job that is cloned, and leaves the other parts alone.
_MERGED_IN_CLONES = ("budget", "recovery", "accuracy")


def main() -> None:
    """Entry point of the `pennyweight` command."""
    app()


@app.command()
@grouped
def compress(
    model: Checkpoint = None,
    url: Url = None,
    *,
    about_model: AboutModel,
    about_dataset: AboutDataset,
    about_job: AboutJob,
    priority: Annotated[
        int | None, typer.Option(help="0 to 100: jobs with a smaller one go first; 0 if left out.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name to find the job by.")] = None,
    clone: Annotated[
        str | None,
        typer.Option(
            help="Take model, dataset and options from this job; options given here win, each cap for its own metric."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end (implied by -o).")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the artifacts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a checkpoint and a budget; get a smaller network that meets it."""
    with connected(url, as_json=as_json) as client:
        options = {**about_job.fields(), **given(priority=priority, name=name)}
        model_fields, dataset_fields = about_model.fields(), about_dataset.fields()
        if output is not None:
            require_writable("--output", output)
        if clone is not None:
            if model is not None or about_dataset.dataset is not None or model_fields:
                raise OptionError("--clone takes model and dataset from the job; leave MODEL and their options out")
            job = client.create_job(**_merged(client.job(clone)["request"], options))
        else:
            job = _submit(client, model, model_fields, about_dataset.dataset, dataset_fields, options)
        err.print(f"{job['id']}  {job['links']['self']}")
        if wait or output is not None:
            job = follow(client, job["id"], quiet=as_json)
        if output is not None:
            paths = client.download(job["id"], output)
            err.print(f"{len(paths)} files in {output}")
        if as_json:
            print_json(job)
        elif job["status"] in TERMINAL:
            out.print(result_table(job["result"]))
        else:
            err.print(f"Follow it with: pennyweight jobs logs {job['id']}")
        if job["status"] == "succeeded" and not job["result"]["met"]:
            raise typer.Exit(EXIT_UNMET)


@app.command()
@grouped
def plan(
    model: Checkpoint = None,
    url: Url = None,
    *,
    about_model: AboutModel,
    about_dataset: AboutDataset,
    about_job: AboutJob,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for the plan, to edit and to give to `compress --plan`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See what compressing would do, layer by layer, in seconds and without doing it.

    Takes what `compress` takes, so that the whole job is checked; training changes nothing in a plan.
    """
    with connected(url, as_json=as_json) as client:
        options = about_job.fields()
        model_fields, dataset_fields = about_model.fields(), about_dataset.fields()
        _require_model_and_budget(model, options)
        if output is not None:
            require_writable("--output", output.parent)
        model_id = _model_id(client, model, model_fields)
        dataset_id = _dataset_id(client, about_dataset.dataset, dataset_fields)
        found = client.create_plan(model_id, **options, **dataset_id)
        if output is not None:
            output.write_text(json.dumps(found, indent=2))
        if as_json:
            print_json(found)
        else:
            out.print(plan_view(found))
            chosen = f" --plan {output}" if output else ""
            err.print(f"Run it with: pennyweight compress {found['model']}{chosen} and the same options")
        if not found["feasible"]:
            raise typer.Exit(EXIT_UNMET)


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
    with connected(url, as_json=as_json) as client:
        entries = read(client)
        if as_json:
            print_json(entries)
            return
        table = Table(key, "", box=None)
        for entry in entries:
            table.add_row(entry[key], entry["title"])
        out.print(table)
        err.print(f"{len(entries)} in all")


def _submit(
    client: Client,
    model: str | None,
    model_fields: Mapping[str, Any],
    dataset: Path | None,
    dataset_fields: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """A job on an uploaded model, or on a file: then model, dataset and job go in one request."""
    _require_model_and_budget(model, options)
    if _is_id(model):
        model_id = _model_id(client, model, model_fields)
        return client.create_job(model_id, **options, **_dataset_id(client, dataset, dataset_fields))
    with upload_bar() as on_bytes:
        return client.submit(
            model,
            options,
            **model_fields,
            dataset_path=dataset,
            **dataset_fields,
            on_bytes=on_bytes,
        )


def _require_model_and_budget(model: str | None, options: Mapping[str, Any]) -> None:
    if model is None:
        raise OptionError(
            "give a checkpoint, or the id of an uploaded model (compress takes --clone with a job's id, too)"
        )
    if "budget" not in options:
        raise OptionError(arguments.NO_BUDGET)


def _is_id(model: str) -> bool:
    return _MODEL_ID.fullmatch(model) is not None and not Path(model).exists()


def _model_id(client: Client, model: str, model_fields: Mapping[str, Any]) -> str:
    if _is_id(model):
        if model_fields:
            raise OptionError(f"{model} is uploaded already: leave {', '.join(model_fields)} out")
        return model
    with upload_bar() as on_bytes:
        return client.upload_model(model, **model_fields, on_bytes=on_bytes)["id"]


def _dataset_id(client: Client, dataset: Path | None, dataset_fields: Mapping[str, Any]) -> dict[str, str]:
    """The field `dataset` of a job on an uploaded dataset; nothing without one."""
    if dataset is None:
        return {}
    with upload_bar() as on_bytes:
        return {"dataset": client.upload_dataset(dataset, **dataset_fields, on_bytes=on_bytes)["id"]}


def _merged(request: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a job like `request`, with `options` in place of what they name."""
    merged = given(**{**request, **options})
    for part in _MERGED_IN_CLONES:
        if request.get(part) and part in options:
            merged[part] = {**request[part], **options[part]}
    return {"model_id" if key == "model" else key: value for key, value in merged.items()}


if __name__ == "__main__":
    sys.exit(main())
