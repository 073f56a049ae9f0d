"""Options that several commands share, and what is made from them: settings and a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pennyweightd import data_folder
from pennyweightd.failures import Refusal
from store.database import Database
from store.settings import Settings

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of the database and objects.  [default: ./data]", show_default=False),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]", show_default=False)]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.  [default: 8000]", show_default=False),
]
Queues = Annotated[
    str | None,
    typer.Option(
        help="What to work on, comma-separated: gpu, cpu.  [default: all that this machine can serve]",
        show_default=False,
    ),
]
Slots = Annotated[int, typer.Option(min=1, help="Jobs at a time without a GPU; with GPUs, each has one.")]
Check = Annotated[bool, typer.Option("--check", help="Only say whether the worker on this data folder is alive.")]


def load_settings(**given: Any) -> Settings:
    """Settings from the environment, with what the command line gave on top. Raises pydantic's ValidationError."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The database that the settings name, its connections closed at the end. Raises Refusal for an unusable URL."""
    data_folder.prepare(settings.data_dir)
    try:
        database = Database(settings.resolved_database_url)
    except ValueError as error:
        raise Refusal(str(error)) from error
    try:
        yield database
    finally:
        database.dispose()


@contextmanager
def open_migrated(settings: Settings) -> Iterator[Database]:
    """That database with its schema up to date: for what is set up before the first server runs."""
    with open_database(settings) as database:
        database.migrate()
        yield database
