"""What every command of the client does around its work: connect, follow a job, and end with words instead of a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from pennyweight.client import Client
from pennyweight.epochs import EpochLines
from pennyweight.errors import ApiError, InvalidAddress, JobFailed, PennyweightError
from pennyweight.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, exit_code
from pennyweight.options import OptionError
from pennyweight.stage_bar import StageBar
from pennyweight.terminal import console, print_error

Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="PENNYWEIGHT_URL", help="The service. [default: http://127.0.0.1:8000]", show_default=False
    ),
]

err = console(stderr=True)
out = console()


@contextmanager
def connected(url: str | None, *, as_json: bool = False) -> Iterator[Client]:
    """A client for the block, and `explained`."""
    with explained(as_json=as_json), Client(url) as client:
        yield client


@contextmanager
def explained(*, as_json: bool = False) -> Iterator[None]:
    """Whatever a user can meet in the block ends as one message and an exit code; with `as_json` the same goes to standard
    output as JSON: the problem document, or the job that failed."""
    try:
        yield
    except (OptionError, InvalidAddress) as error:
        _stop(str(error), EXIT_USAGE, _problem("usage", error), as_json)
    except JobFailed as error:
        known = error.resource or _problem(error.code, error)
        _stop(f"{error.job_id} failed ({error.code}): {error}", exit_code(error.code), known, as_json)
    except ApiError as error:
        request = f"  (request {error.request_id})" if error.request_id else ""
        code = EXIT_USAGE if error.status in (400, 413, 415, 422) else EXIT_FAILED
        _stop(f"{error}{request}", code, {"status": error.status, **error.problem}, as_json)
    except (PennyweightError, TimeoutError) as error:
        _stop(str(error), EXIT_FAILED, _problem("unreachable", error), as_json)
    except FileNotFoundError as error:
        message = f"{error.filename}: there is no such file."
        _stop(message, EXIT_USAGE, _problem("usage", message), as_json)
    except OSError as error:
        message = f"{error.filename or ''}: {error.strerror or error}"
        _stop(message, EXIT_FAILED, _problem("failed", message), as_json)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def follow(client: Client, job_id: str, *, quiet: bool) -> dict[str, Any]:
    """Wait with a stage bar. Ctrl-C ends the waiting and leaves the job alone."""
    try:
        with StageBar(err) as bar:
            return client.wait(job_id, on_change=None if quiet else EpochLines(client, bar))
    except KeyboardInterrupt:
        err.print(
            f"\nStopped waiting; {job_id} goes on. See it with `pennyweight jobs show {job_id}`, "
            f"stop it with `pennyweight jobs cancel {job_id}`."
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def upload_bar() -> Iterator[Callable[[int, int], None]]:
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


def _problem(code: str, detail: object) -> dict[str, Any]:
    """A problem document for what the service never saw."""
    return {"type": f"urn:pennyweight:problem:{code}", "code": code, "detail": str(detail)}


def _stop(message: str, code: int, document: Mapping[str, Any], as_json: bool) -> None:
    print_error(err, message)
    if as_json:
        print_json(document)
    raise typer.Exit(code)
