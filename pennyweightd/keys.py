"""`pennyweightd keys`: API keys of this installation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pennyweight.terminal import console
from rich.table import Table

from pennyweightd.failures import Refusal, explained
from pennyweightd.options import DataDir, load_settings, open_database
from store.database import Database
from store.keys import KeyRepository, any_valid_key
from store.tables import LOCAL_TENANT

app = typer.Typer(help="API keys: needed on every address but loopback.", no_args_is_help=True)
MAX_NAME_CHARACTERS = 100


@app.command()
def create(name: Annotated[str, typer.Argument(help="Whose key this is.")], data_dir: DataDir = None) -> None:
    """Make a key and show it, once."""
    with explained():
        if not 0 < len(name.strip()) <= MAX_NAME_CHARACTERS:
            raise Refusal(f"A key needs a name of at most {MAX_NAME_CHARACTERS} characters.")
        with _database(data_dir) as database, database.transaction() as session:
            key, secret = KeyRepository(session, LOCAL_TENANT).create(name.strip())
        print(secret)
        print(
            f"This is {key.id}. Only its digest is kept, so it cannot be shown again.",
            file=typer.get_text_stream("stderr"),
        )


@app.command()
def first(name: Annotated[str, typer.Argument(help="Whose key this is.")] = "first", data_dir: DataDir = None) -> None:
    """Make the first key and show it, once; where there is a key that works, do nothing. For scripts that deploy."""
    with explained(), _database(data_dir) as database, database.transaction() as session:
        if any_valid_key(session):
            print("There is a key already.", file=typer.get_text_stream("stderr"))
            return
        _, secret = KeyRepository(session, LOCAL_TENANT).create(name)
        print(secret)


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """Show all keys, the revoked ones too."""
    with explained(), _database(data_dir) as database, database.read() as session:
        table = Table("id", "name", "begins", "created", "revoked", box=None)
        for key in KeyRepository(session, LOCAL_TENANT).list():
            revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
            table.add_row(key.id, key.name, f"{key.prefix}…", f"{key.created_at:%Y-%m-%d %H:%M}", revoked)
        console().print(table)


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, from `keys list`.")], data_dir: DataDir = None
) -> None:
    """End a key at once."""
    with explained(), _database(data_dir) as database, database.transaction() as session:
        key = KeyRepository(session, LOCAL_TENANT).revoke(id)
        print(f"Revoked {key.id} ({key.name}).")


@contextmanager
def _database(data_dir: Path | None) -> Iterator[Database]:
    """The database, its schema up to date: keys are made before the first server runs."""
    with open_database(load_settings(data_dir=data_dir)) as database:
        database.migrate()
        yield database
