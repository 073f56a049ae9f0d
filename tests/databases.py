"""The databases that tests run on: SQLite always, PostgreSQL where there is one.

PENNYWEIGHT_TEST_DATABASE_URL names a PostgreSQL server on which databases may be made (the full suite sets it); without
it, a private server is started where its programs are installed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Table, create_engine, make_url, text

from store.database import Database
from store.errors import SchemaOutdated
from store.tables import Base
from tests.servers import Postgres, program

GIVEN_URL = os.environ.get("PENNYWEIGHT_TEST_DATABASE_URL")
DIALECTS = ("sqlite", "postgresql") if GIVEN_URL or program("postgres") else ("sqlite",)

Fill = Callable[[Database], None]


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a server with an administrator's rights."""
    if GIVEN_URL:
        yield GIVEN_URL
        return
    with Postgres() as server:
        yield server.url()


class Databases(Protocol):
    """Databases as the migrations build them, with what the test area wants in each."""

    def take(self, path: Path) -> str:
        """The URL of one more. Where a database is a file, it lies at `path`."""

    def give_back(self, url: str) -> None:
        """Nobody is connected to it any more."""


class SqliteDatabases:
    """Copies of one file."""

    def __init__(self, folder: Path, fill: Fill) -> None:
        self._template = folder / "migrated.db"
        _prepare(f"sqlite:///{self._template}", fill)

    def take(self, path: Path) -> str:
        shutil.copy(self._template, path)
        return f"sqlite:///{path}"

    def give_back(self, url: str) -> None:
        """Files go with the test's folder."""


class PostgresDatabases:
    """Making and dropping a database takes a good part of a second, so those that come back are emptied and used again."""

    def __init__(self, server_url: str, fill: Fill) -> None:
        self._server_url = server_url
        self._fill = fill
        self._made: list[str] = []
        self._free: list[str] = []
        self._rows: dict[Table, list[dict[str, Any]]] = {}

    def take(self, path: Path) -> str:
        if not self._free:
            self._free.append(self._create())
        return self._free.pop()

    def give_back(self, url: str) -> None:
        database = Database(url)
        with suppress(SchemaOutdated):  # a test that changes the schema keeps the database
            database.check_schema()
            with database.transaction() as session:
                for table in reversed(Base.metadata.sorted_tables):
                    session.execute(table.delete())
                for table, rows in self._rows.items():
                    session.execute(table.insert(), rows)
            self._free.append(url)
        database.dispose()

    def close(self) -> None:
        for url in self._made:
            execute_on_server(self._server_url, f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    def _create(self) -> str:
        url = create_database(self._server_url)
        self._made.append(url)
        _prepare(url, self._fill)
        if not self._rows:
            database = Database(url)
            with database.read() as session:
                found = {t: session.execute(t.select()).mappings().all() for t in Base.metadata.sorted_tables}
            self._rows = {table: [dict(row) for row in rows] for table, rows in found.items() if rows}
            database.dispose()
        return url


@contextmanager
def databases(dialect: str, folder: Path, server_url: str | None, fill: Fill) -> Iterator[Databases]:
    """Databases of this kind that `fill` has put something into."""
    if dialect == "sqlite":
        yield SqliteDatabases(folder, fill)
        return
    assert server_url is not None
    made = PostgresDatabases(server_url, fill)
    yield made
    if GIVEN_URL:  # a private server goes with everything in it
        made.close()


@contextmanager
def empty_database(dialect: str, folder: Path, server_url: str | None) -> Iterator[str]:
    """The URL of a database without tables."""
    if dialect == "sqlite":
        yield f"sqlite:///{folder}/deep/down/new.db"
        return
    assert server_url is not None
    url = create_database(server_url)
    yield url
    execute_on_server(server_url, f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')


def create_database(server_url: str) -> str:
    """The URL of a new empty database."""
    name = f"test_{secrets.token_hex(6)}"
    execute_on_server(server_url, f'CREATE DATABASE "{name}"')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _prepare(url: str, fill: Fill) -> None:
    database = Database(url)
    database.migrate()
    fill(database)
    database.dispose()


def execute_on_server(server_url: str, statement: str) -> None:
    engine = create_engine(make_url(server_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
