"""`pennyweightd keys`: API keys of this installation."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer
from pennyweight.terminal import console
from rich.table import Table

from pennyweightd.failures import Refusal, explained
from pennyweightd.options import DataDir, load_settings, open_migrated
from store.keys import KeyRepository, all_keys, any_valid_key, require_tenant
from store.tables import LOCAL_TENANT, Scope

app = typer.Typer(help="API keys: needed on every address but loopback.", no_args_is_help=True)
MAX_NAME_CHARACTERS = 100


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key this is.")],
    tenant: Annotated[str, typer.Option(help="Who owns what is made with it; made when new.")] = LOCAL_TENANT,
    scope: Annotated[
        Scope, typer.Option(help="read; write: also make and delete; admin: also webhooks.")
    ] = Scope.admin,
    expires_days: Annotated[int | None, typer.Option("--expires", min=1, max=36500, help="Days until it ends.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and show it, once."""
    with explained():
        if not 0 < len(name.strip()) <= MAX_NAME_CHARACTERS:
            raise Refusal(f"A key needs a name of at most {MAX_NAME_CHARACTERS} characters.")
        with open_migrated(load_settings(data_dir=data_dir)) as database, database.transaction() as session:
            expires_at = None if expires_days is None else database.now(session) + timedelta(days=expires_days)
            try:
                require_tenant(session, tenant)
            except ValueError as error:
                raise Refusal(str(error)) from error
            key, secret = KeyRepository(session, tenant).create(name.strip(), scope, expires_at)
        print(secret)
        print(
            f"This is {key.id}. Only its digest is kept, so it cannot be shown again.",
            file=typer.get_text_stream("stderr"),
        )


@app.command()
def first(name: Annotated[str, typer.Argument(help="Whose key this is.")] = "first", data_dir: DataDir = None) -> None:
    """Make the first key and show it, once; where there is a key that works, do nothing. For scripts that deploy."""
    with explained(), open_migrated(load_settings(data_dir=data_dir)) as database, database.transaction() as session:
        if any_valid_key(session):
            print("There is a key already.", file=typer.get_text_stream("stderr"))
            return
        _, secret = KeyRepository(session, LOCAL_TENANT).create(name)
        print(secret)


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """Show all keys, the revoked ones too."""
    with explained(), open_migrated(load_settings(data_dir=data_dir)) as database, database.read() as session:
        table = Table(box=None)
        # An id is for copying: it is never cut, however narrow the terminal.
        table.add_column("id", no_wrap=True, min_width=len("key_") + 26)
        for heading in ("tenant", "name", "begins", "scope", "created", "expires", "revoked"):
            table.add_column(heading, overflow="fold")
        for key in all_keys(session):
            times = (
                f"{time:%Y-%m-%d %H:%M}" if time else "" for time in (key.created_at, key.expires_at, key.revoked_at)
            )
            table.add_row(key.id, key.tenant_id, key.name, f"{key.prefix}…", key.scope.value, *times)
        console().print(table)


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, from `keys list`.")], data_dir: DataDir = None
) -> None:
    """End a key at once."""
    with explained(), open_migrated(load_settings(data_dir=data_dir)) as database, database.transaction() as session:
        owner = next((key.tenant_id for key in all_keys(session) if key.id == id), LOCAL_TENANT)
        key = KeyRepository(session, owner).revoke(id)
        print(f"Revoked {key.id} ({key.name}).")
