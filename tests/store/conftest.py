"""A migrated SQLite database per test, with two tenants."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.database import Database
from store.tables import Tenant
from tests.store.house import OTHER_TENANT, House


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file built by the migrations, with a second tenant; tests copy it."""
    path = tmp_path_factory.mktemp("database") / "migrated.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.transaction() as session:
        session.add(Tenant(id=OTHER_TENANT, name="other", created_at=database.now(session)))
    database.dispose()
    return path


@pytest.fixture
def new_house(migrated_file: Path, tmp_path: Path) -> Iterator[Callable[[], House]]:
    """Makes houses with an empty database each."""
    houses: list[House] = []

    def make() -> House:
        path = tmp_path / f"pennyweight-{len(houses)}.db"
        shutil.copy(migrated_file, path)
        houses.append(House(f"sqlite:///{path}"))
        return houses[-1]

    yield make
    for house in houses:
        house.database.dispose()


@pytest.fixture
def house(new_house: Callable[[], House]) -> House:
    return new_house()
