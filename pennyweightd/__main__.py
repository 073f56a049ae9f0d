"""`pennyweightd`: the server's command line.

serve      API and embedded worker in one process, on SQLite and local files
api        the API alone
worker     a worker alone
migrate    bring the database to this version's schema
keys       API keys
quotas     what each tenant may have
health     whether the worker on this data folder lives
compress   the engine on one checkpoint, without a server
version    what this is
"""

from __future__ import annotations

import typer

from pennyweightd import keys, quotas
from pennyweightd.compress import compress
from pennyweightd.failures import explained
from pennyweightd.options import Check, DataDir, Host, Port, Queues, Slots, load_settings, open_database

app = typer.Typer(
    help="Pennyweight: compress a trained CNN onto an exact budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(keys.app, name="keys")
app.add_typer(quotas.app, name="quotas")
app.command()(compress)


@app.command()
def serve(host: Host = None, port: Port = None, data_dir: DataDir = None) -> None:
    """Run the service: API and worker in one process, no other servers needed."""
    from pennyweightd.server import serve as run

    with explained():
        run(load_settings(host=host, port=port, data_dir=data_dir))


@app.command()
def api(host: Host = None, port: Port = None, data_dir: DataDir = None) -> None:
    """Run the API alone, for workers that run elsewhere."""
    from pennyweightd.server import serve_api

    with explained():
        serve_api(load_settings(host=host, port=port, data_dir=data_dir))


@app.command()
def worker(queues: Queues = None, slots: Slots = 1, data_dir: DataDir = None, check: Check = False) -> None:
    """Run a worker alone, for an API that runs elsewhere; with PENNYWEIGHT_QUEUE_URL on Celery."""
    from pennyweightd.worker import require_alive, work

    with explained():
        if check:
            require_alive(load_settings(data_dir=data_dir))
            return
        asked = None if queues is None else [name.strip() for name in queues.split(",") if name.strip()]
        work(load_settings(data_dir=data_dir), asked, slots)


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database to this version's schema."""
    with explained(), open_database(load_settings(data_dir=data_dir)) as database:
        database.migrate()
        print("The database is up to date.")


@app.command()
def health(data_dir: DataDir = None) -> None:
    """Say whether the worker on this data folder lives, by the exit status too."""
    from pennyweightd.health import check

    with explained():
        check(load_settings(data_dir=data_dir))


@app.command()
def version() -> None:
    """Show the version."""
    from api.operations import VERSION

    print(f"pennyweightd {VERSION}")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
