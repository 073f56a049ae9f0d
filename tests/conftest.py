"""Property tests draw the same examples in every run, so that a red suite is the change's doing.

`HYPOTHESIS_PROFILE=explore make test` draws new ones, and more of them.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# A console takes its width from these when it is made, which is when a module is imported; processes of pytest-xdist have
# them whatever the terminal is, and tests that look at tables set their own.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """Each test begins with the umask of a shell: opening a data folder makes its process keep files private."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The endpoint of an S3 that moto plays, credentials for it (and for a real one) in the environment."""
    from tests.store.object_stores import moto_endpoint, s3_environment  # moto takes a second

    with s3_environment(), moto_endpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server on which databases may be made."""
    from tests.databases import postgres_server

    with postgres_server() as url:
        yield url
