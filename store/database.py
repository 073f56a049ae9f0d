"""The job database: one object that hands out transactions and owns the schema.

Writes go through `transaction()`, which serialises on SQLite (BEGIN IMMEDIATE) and never has to be retried; reads go
through `read()`, which sees one consistent snapshot, blocks nobody and cannot write. What a single statement can tell
and many ask for goes through `look()`: no transaction, so one round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

import migrations
from store import dialect, tallies
from store.errors import SchemaOutdated

POOL_SIZE = 8
POOL_OVERFLOW = 56
"""Beyond the pool: 40 request threads and the worker's own must never wait for one another's connections."""

LOOKS_AT_ONCE = 2
"""Connections that are kept for `look()`: whoever looks for many has one thread."""

T = TypeVar("T")


class Database:
    """A database by its SQLAlchemy URL. Cheap to make; connects on first use. Share one among threads, never among processes."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise ValueError(
                "PENNYWEIGHT_DATABASE_URL is not a database URL such as postgresql://user:password@host/name."
            ) from error
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError(
                f"PENNYWEIGHT_DATABASE_URL must be a sqlite: or postgresql: URL, not {parsed.drivername!r}."
            )
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise ValueError(
                    "The database must be a file: threads and processes share it. Use sqlite:///path/to/file.db."
                )
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")  # which driver a bare name means is up to SQLAlchemy
        try:
            self._engine = create_engine(
                parsed,
                pool_size=POOL_SIZE,
                max_overflow=POOL_OVERFLOW,
                # A server that was restarted has closed what the pool holds; nobody should meet that as an error.
                pool_pre_ping=parsed.get_backend_name() != "sqlite",
                connect_args=dialect.connect_args(parsed),
                json_deserializer=from_json,
            )
        except ImportError as error:
            raise ValueError(
                f"{parsed.drivername}: URLs need a driver that is not installed ({error}). "
                "Run: pip install 'pennyweight-server[postgres]'"
            ) from error
        dialect.prepare(self._engine)
        self._looker = create_engine(
            parsed,
            pool_size=LOOKS_AT_ONCE,
            max_overflow=POOL_OVERFLOW,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,  # nothing to undo; a rollback would be a round trip
            connect_args=dialect.connect_args(parsed),
        )
        dialect.prepare_looks(self._looker)
        self._shard = tallies.new_shard()
        self._reader = self._engine.execution_options(**dialect.read_options(parsed))
        self._writer = self._engine.execution_options(**dialect.WRITE)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A write transaction: commits at the end of the block, rolls back on any exception."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session
            tallies.write(session, self._shard)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only snapshot; rows stay usable after the block."""
        with Session(self._reader, expire_on_commit=False, autoflush=False) as session, session.begin():
            yield session

    def look(self, read: Callable[[Connection], T]) -> T:
        """What `read` finds by statements that each see a snapshot, not older than this call, and cannot write.

        `read` may be called twice: nobody asks beforehand whether the server has closed a connection meanwhile.
        """
        try:
            with self._looker.connect() as connection:
                return read(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with self._looker.connect() as connection:
            return read(connection)

    def now(self, session: Session) -> datetime:
        """Database time (aware UTC): the only clock for leases."""
        return dialect.now(session)

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to `revision` in one transaction; safe to call from several processes at once."""
        downgrade = revision != "head" and self._is_older(revision)
        with self._writer.connect() as connection:
            try:
                dialect.begin_migration(connection)
                with connection.begin():
                    dialect.lock_migration(connection)
                    config = _alembic_config()
                    config.attributes["connection"] = connection
                    (command.downgrade if downgrade else command.upgrade)(config, revision)
                    dialect.check_migration(connection)
            finally:
                connection.invalidate()  # its settings are the migration's; never hand it to anyone else

    def check_schema(self) -> None:
        """Raise SchemaOutdated unless the database is at this program's revision."""
        current, head = self._revision(), ScriptDirectory.from_config(_alembic_config()).get_current_head()
        if current == head:
            return
        known = {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}
        if current is not None and current not in known:
            raise SchemaOutdated(
                f"The database schema ({current}) is newer than this program ({head}): run the newer version of Pennyweight."
            )
        raise SchemaOutdated(
            f"The database schema is {current or 'empty'} and this program needs {head}: run `pennyweightd migrate` first."
        )

    def dispose(self) -> None:
        """Close all pooled connections."""
        self._engine.dispose()
        self._looker.dispose()

    def _revision(self) -> str | None:
        with self._reader.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def _is_older(self, revision: str) -> bool:
        current = self._revision()
        if current is None or revision == current:
            return False
        if revision == "base":
            return True
        script = ScriptDirectory.from_config(_alembic_config())
        return revision in {older.revision for older in script.iterate_revisions(current, "base")}


def is_down(error: BaseException) -> bool:
    """Whether the database did not answer: what failed may go well as soon as it does."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    return isinstance(error, OperationalError) and dialect.is_down(error.orig)


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
