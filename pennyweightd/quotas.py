"""`pennyweightd quotas`: what each tenant may have, and what it has."""

from __future__ import annotations

from typing import Annotated

import typer
from pennyweight.options import OptionError, parse_cap
from pennyweight.terminal import console
from rich.table import Table

from pennyweightd.failures import Refusal, explained
from pennyweightd.options import DataDir, load_settings, open_migrated
from store.gpu_time import WINDOW_DAYS
from store.keys import all_tenants, require_tenant
from store.quotas import LIMITS, LimitName, Quotas, change_quotas, own_quotas, usage

app = typer.Typer(help="What each tenant may have: bytes, jobs at a time, GPU time.", no_args_is_help=True)

UNLIMITED, INSTALLATION = "unlimited", "default"
_OPTIONS: dict[LimitName, str] = {"stored_bytes": "--bytes", "active_jobs": "--jobs", "gpu_seconds": "--gpu-seconds"}
_WORDS = f"A number, {UNLIMITED}, or {INSTALLATION} for the installation's."

Bytes = Annotated[
    str | None,
    typer.Option("--bytes", help=f"What it may store, for example 50GB. {_WORDS}", show_default=False),
]
Jobs = Annotated[
    str | None, typer.Option("--jobs", help=f"Jobs that are queued or running at a time. {_WORDS}", show_default=False)
]
GpuSeconds = Annotated[
    str | None,
    typer.Option(
        "--gpu-seconds",
        help=f"How long its jobs may hold GPUs in {WINDOW_DAYS} days, added up over GPUs. {_WORDS}",
        show_default=False,
    ),
]


@app.command("set")
def set_(
    tenant: Annotated[str, typer.Argument(help="Whose limits; made when new.")],
    stored: Bytes = None,
    jobs: Jobs = None,
    gpu_seconds: GpuSeconds = None,
    data_dir: DataDir = None,
) -> None:
    """Give a tenant limits of its own; those that are not named stay as they are."""
    with explained():
        given = {"stored_bytes": stored, "active_jobs": jobs, "gpu_seconds": gpu_seconds}
        named: dict[LimitName, str] = {name: given[name] for name in LIMITS if given[name] is not None}
        if not named:
            raise Refusal(f"Name a limit: {', '.join(_OPTIONS.values())}.")
        own = {name: _limit(name, text) for name, text in named.items() if text != INSTALLATION}
        settings = load_settings(data_dir=data_dir)
        with open_migrated(settings) as database:
            with database.transaction() as session:
                try:
                    require_tenant(session, tenant)
                except ValueError as error:
                    raise Refusal(str(error)) from error
                change_quotas(session, tenant, own, inherited=named.keys() - own.keys())
            with database.read() as session:
                effective = Quotas.of_installation(settings).of(session, tenant)
        said = ", ".join(f"{_OPTIONS[name]} {_shown(getattr(effective, name))}" for name in LIMITS)
        print(f"{tenant}: {said}")


@app.command()
def show(
    tenant: Annotated[str | None, typer.Argument(help="One tenant; all of them without it.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Show what tenants use and may use; a * marks limits of a tenant's own."""
    with explained():
        settings = load_settings(data_dir=data_dir)
        table = Table(box=None)
        for heading in ("tenant", "bytes", "of", "jobs", "of", "GPU seconds", "of"):
            table.add_column(heading, overflow="fold", justify="left" if heading == "tenant" else "right")
        with open_migrated(settings) as database, database.read() as session:
            for id in all_tenants(session) if tenant is None else [tenant]:
                own, used = own_quotas(session, id), usage(session, id)
                limits = Quotas.of_installation(settings).of(session, id)
                cells = [
                    cell
                    for name in LIMITS
                    for cell in (str(used[name]), _shown(getattr(limits, name)) + ("*" if name in own else ""))
                ]
                table.add_row(id, *cells)
        console().print(table)


def _limit(name: LimitName, text: str) -> int | None:
    """The number that a word stands for. Raises Refusal."""
    if text == UNLIMITED:
        return None
    if text.strip() == "0":
        return 0
    metric = "size" if name == "stored_bytes" else "params"
    example = "50GB" if name == "stored_bytes" else "100"
    try:
        value = parse_cap(metric, text).get("max")
    except OptionError:
        value = None
    if not isinstance(value, int):
        raise Refusal(
            f"{_OPTIONS[name]} {text}: give a whole number, for example {example}, or {UNLIMITED}, or {INSTALLATION} "
            "for the installation's limit."
        )
    return value


def _shown(limit: int | None) -> str:
    return UNLIMITED if limit is None else str(limit)
