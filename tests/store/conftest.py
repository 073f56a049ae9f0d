"""A migrated database per test, with two tenants, on every kind of database that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.database import Database
from store.tables import Tenant
from tests.databases import DIALECTS, Databases, databases, empty_database
from tests.store.house import OTHER_TENANT, House


@pytest.fixture(scope="session", params=DIALECTS)
def dialect_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def server_url(dialect_name: str, request: pytest.FixtureRequest) -> str | None:
    return None if dialect_name == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def made_databases(
    dialect_name: str, server_url: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Databases]:
    """Databases as the migrations build them, with a second tenant."""

    def fill(database: Database) -> None:
        with database.transaction() as session:
            session.add(Tenant(id=OTHER_TENANT, name="other", created_at=database.now(session)))

    with databases(dialect_name, tmp_path_factory.mktemp("database"), server_url, fill) as made:
        yield made


@pytest.fixture
def new_house(made_databases: Databases, tmp_path: Path) -> Iterator[Callable[[], House]]:
    """Makes houses with an empty database each."""
    houses: list[House] = []

    def make() -> House:
        houses.append(House(made_databases.take(tmp_path / f"pennyweight-{len(houses)}.db")))
        return houses[-1]

    yield make
    for house in houses:
        house.database.dispose()
        made_databases.give_back(house.url)


@pytest.fixture
def house(new_house: Callable[[], House]) -> House:
    return new_house()


@pytest.fixture
def empty_url(dialect_name: str, server_url: str | None, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    with empty_database(dialect_name, tmp_path, server_url) as url:
        yield url
