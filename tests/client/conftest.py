"""The client's tests run against the real service."""

from tests.api.conftest import migrated

__all__ = ["migrated"]
