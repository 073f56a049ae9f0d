"""`pennyweightd health` as a container engine asks it."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from pennyweightd.data_folder import DataFolder
from store.catalogue import CatalogueRepository
from store.contract import Catalogue
from store.database import Database
from store.settings import Settings
from store.tables import Worker

CATALOGUE = Catalogue(version="0.1.0", methods=[], architectures=[], devices=["cpu"], versions={})


def health(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pennyweightd", "health", "--data-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def database(tmp_path):
    database = Database(Settings(data_dir=tmp_path).resolved_database_url)
    database.migrate()
    yield database
    database.dispose()


def test_a_worker_is_healthy_as_long_as_it_is_heard_of(tmp_path, database):
    assert (health(tmp_path).returncode, "ever run" in health(tmp_path).stderr) == (1, True)
    with DataFolder(tmp_path) as folder:
        with database.transaction() as session:
            CatalogueRepository(session).publish("somebody-else/short", CATALOGUE)
        assert health(tmp_path).returncode == 1
        with database.transaction() as session:
            CatalogueRepository(session).publish(f"{folder.owner}short", CATALOGUE)
        assert health(tmp_path).returncode == 0
        with database.transaction() as session:
            mine = update(Worker).where(Worker.id == f"{folder.owner}short")
            session.execute(mine.values(seen_at=database.now(session) - timedelta(seconds=100)))
        silent = health(tmp_path)
        assert silent.returncode == 1 and "has not been heard of for 10" in silent.stderr
