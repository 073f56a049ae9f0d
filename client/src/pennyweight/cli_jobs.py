"""`pennyweight jobs`: list, show, follow, cancel and download jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from pennyweight.arguments import AsJson, require_writable
from pennyweight.epochs import epoch_line
from pennyweight.session import Url, connected, err, follow, out, print_json
from pennyweight.stage_bar import duration
from pennyweight.tables import cap_words, result_table
from pennyweight.waiting import TERMINAL

app = typer.Typer(no_args_is_help=True, help="List, show, follow and cancel jobs.")

JobId = Annotated[str, typer.Argument(help="A job's id, job_…")]


@app.command("ls")
def list_jobs(
    url: Url = None,
    status: Annotated[
        str | None, typer.Option(help="queued, running, cancelling, succeeded, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest jobs."""
    with connected(url, as_json=as_json) as client:
        jobs = list(client.jobs(status=status, limit=limit))
        if as_json:
            print_json(jobs)
            return
        if not jobs:
            err.print("No jobs yet. Start one with: pennyweight compress MODEL --flops 40%")
            return
        # An id is there to be given to other commands, so it stays whole where the terminal is narrow.
        table = Table(Column("job", min_width=len("job_") + 26), "status", "name", "budget", "created", box=None)
        for job in jobs:
            table.add_row(
                job["id"],
                _status(job),
                job.get("name") or "",
                ", ".join(
                    f"{metric} ≤ {cap_words(metric, cap)}" for metric, cap in job["request"]["budget"].items() if cap
                ),
                job["created_at"][:19].replace("T", " "),
            )
        out.print(table)


@app.command("show")
def show_job(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """One job: its state, its result or its error."""
    with connected(url, as_json=as_json) as client:
        job = client.job(job_id)
        if as_json:
            print_json(job)
            return
        out.print(Text.assemble(f"{job['id']}  ", _status(job), f"  {job.get('name') or ''}"))
        if job["error"]:
            out.print(f"{job['error']['code']}: {job['error']['message']}")
        if job["result"]:
            out.print(result_table(job["result"]))


@app.command("logs")
def follow_job(job_id: JobId, url: Url = None) -> None:
    """A job's events; follows it while it runs."""
    with connected(url) as client:
        for event in client.events(job_id):
            data = {key: value for key, value in (event.get("data") or {}).items() if value is not None}
            if event["type"] == "job.epoch":
                words = epoch_line(data)
            else:
                words = " ".join(f"{key}={value}" for key, value in data.items() if not isinstance(value, (dict, list)))
            out.print(f"{event['at'][:19].replace('T', ' ')}  {event['type']:<18} {words}")
        if client.job(job_id)["status"] not in TERMINAL:
            follow(client, job_id, quiet=False)
            out.print(f"{job_id} succeeded")


@app.command("cancel")
def cancel_job(job_id: JobId, url: Url = None) -> None:
    """Stop a job."""
    with connected(url) as client:
        out.print(f"{job_id} is {client.cancel(job_id)['status']}")


@app.command("download")
def download_job(
    job_id: JobId,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the artifacts.")],
    url: Url = None,
) -> None:
    """Fetch a job's artifacts, each checked against its sha256."""
    with connected(url) as client:
        require_writable("--output", output)
        for path in client.download(job_id, output):
            out.print(str(path))


@app.command("bundle")
def bundle_job(
    job_id: JobId,
    output: Annotated[Path, typer.Option("-o", "--output", help="The zip file to write.")],
    layout: Annotated[
        str, typer.Option(help="flat: every artifact; triton: a model repository for Triton Inference Server.")
    ] = "flat",
    url: Url = None,
) -> None:
    """Fetch a job's artifacts as one zip file."""
    with connected(url) as client:
        out.print(str(client.bundle(job_id, output, layout=layout)))


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
