"""Both stacks. The fleet needs PostgreSQL and Redis; where they are not installed, the tests that need them are not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import DIALECTS, create_database
from tests.servers import Redis, program
from tests.stacks.stack import Fleet, OneMachine, Stack, queue_server
from tests.store.object_stores import REAL_S3_URL, s3_url

HAS_FLEET = "postgresql" in DIALECTS and bool(os.environ.get("PENNYWEIGHT_TEST_QUEUE_URL") or program("redis-server"))
HAS_OWN_SERVERS = bool(program("postgres") and program("redis-server"))
KINDS = ("one machine", "fleet") if HAS_FLEET else ("one machine",)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Tests of the fleet alone are not collected where there is none."""
    needed = {"test_fleet_trouble.py": HAS_OWN_SERVERS, "test_chaos_short.py": HAS_OWN_SERVERS}
    return None if needed.get(collection_path.name, True) else True


@pytest.fixture(scope="session")
def queue_url() -> Iterator[str]:
    with queue_server() as url:
        yield url


@pytest.fixture(scope="session")
def storage_url(moto: str) -> str:
    """A folder of a bucket: in the real S3 server where one is named."""
    return s3_url("s3" if REAL_S3_URL else "moto", moto)


@pytest.fixture(scope="module", params=KINDS)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the module: each test leaves it at work."""
    folder = tmp_path_factory.mktemp("stack")
    if request.param == "one machine":
        made: Stack = OneMachine(folder)
    else:
        urls = [request.getfixturevalue(name) for name in ("postgres_url", "storage_url", "queue_url")]
        made = Fleet(folder, create_database(urls[0]), *urls[1:])
    with contextlib.closing(made):
        yield made


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    """A Redis that may be killed."""
    with Redis() as redis:
        yield redis


@pytest.fixture(scope="module")
def fleet(
    own_redis: Redis, postgres_url: str, storage_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with contextlib.closing(
        Fleet(folder, create_database(postgres_url), storage_url, own_redis.url(), slots=2)
    ) as made:
        yield made
