"""Everything that differs between SQLite and PostgreSQL, so that no other module knows which one it talks to."""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import DateTime, Dialect, Engine, String, event
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator

BUSY_TIMEOUT_S = 30.0
"""How long a SQLite connection waits for the single writer before it gives up with `database is locked`."""

CONNECT_TIMEOUT_S = 10
"""How long PostgreSQL may take to answer at all; a host that drops packets would hold a start for minutes."""

WRITE = {"pennyweight_access": "write"}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: aware datetimes in, aware UTC datetimes out, on databases with and without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"A timestamp needs a time zone, got the naive {value!r}.")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class EnumText(TypeDecorator[StrEnum]):
    """A `StrEnum` kept as its text: readable in the database, an enum member in Python."""

    impl = String(16)
    cache_ok = True

    def __init__(self, enum: type[StrEnum]) -> None:
        super().__init__()
        self.enum = enum

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else self.enum(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.enum(value)


class database_now(FunctionElement[datetime]):
    """The database's own clock, with sub-second resolution: the only clock that leases know."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: Any, **_: Any) -> str:
    # SQLite's clock has milliseconds; three zeros give the text the width of a stored timestamp.
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(database_now, "postgresql")
def _postgresql_now(element: database_now, compiler: Any, **_: Any) -> str:
    return "clock_timestamp()"


def connect_args(url: URL) -> dict[str, Any]:
    """Driver arguments for `create_engine`."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_TIMEOUT_S}
    return {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}


def read_options(url: URL) -> dict[str, Any]:
    """Execution options of a transaction that sees one snapshot and cannot write."""
    if url.get_backend_name() == "sqlite":
        return {"pennyweight_access": "read"}
    # By default every statement of a PostgreSQL transaction would see a snapshot of its own.
    return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def prepare(engine: Engine) -> None:
    """Give a fresh engine the connection settings that the store relies on."""
    if engine.dialect.name != "sqlite":
        return
    event.listen(engine, "connect", _prepare_sqlite)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that writes after reading can fail at once when another writer came between;
        # BEGIN IMMEDIATE takes the write lock first and waits for it.
        read_only = connection.get_execution_options().get("pennyweight_access") == "read"
        connection.exec_driver_sql(f"PRAGMA query_only = {int(read_only)}")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver must not open transactions by itself: it would open deferred ones, too late, and none for reads.
    connection.isolation_level = None
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def prepare_looks(engine: Engine) -> None:
    """Give a fresh engine whose connections commit by themselves the settings of those that only look."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        only_reads = "PRAGMA query_only = 1"
    else:
        only_reads = "SET default_transaction_read_only = on"

    @event.listens_for(engine, "connect")
    def _only_read(connection: Any, _record: object) -> None:
        connection.cursor().execute(only_reads)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL once. SQLite does not wait for its lock on this switch, so two starters must retry."""
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)


def is_down(error: BaseException | None) -> bool:
    """Whether a driver's operational error says that nobody answered: no connection, a server that starts or stops, or has
    no room for one more; of SQLite, that others held the file for BUSY_TIMEOUT_S."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
    state = getattr(error, "sqlstate", None)
    return state is None or state[:2] in ("08", "53") or state[:3] == "57P"


def begin_migration(connection: Connection) -> None:
    """Before the migration's transaction: a rebuilt SQLite table is dropped and renamed, which must not cascade."""
    if connection.dialect.name == "sqlite":
        connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")


def lock_migration(connection: Connection) -> None:
    """Inside the migration's transaction: one migration at a time (SQLite's BEGIN IMMEDIATE is already such a lock)."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7069732001)")


def check_migration(connection: Connection) -> None:
    """Before the migration's commit: with enforcement switched off, look for dangling references ourselves."""
    if connection.dialect.name == "sqlite":
        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if dangling:
            raise RuntimeError(f"The migration would leave dangling references, first {tuple(dangling[0])}.")


def insert(session: Session, table: type[Any]) -> Any:
    """An INSERT into `table` that knows `on_conflict_do_update`: both dialects spell it the same way."""
    return (sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgresql_insert)(table)


def now(session: Session) -> datetime:
    """Database time, aware UTC."""
    return session.scalar(database_now().select())
