"""Where objects lie: every key starts with its tenant, and what a job attempt writes carries the attempt.

The attempt in the key is what makes a stale worker harmless: it can write garbage beside a result, never into it.
"""

from __future__ import annotations

from typing import NamedTuple

_DEPTHS = {"models": 5, "datasets": 5, "jobs": 6}


class Owner(NamedTuple):
    """Whose an object is: `models`, `datasets` or `jobs`, and the id."""

    kind: str
    id: str


def model_key(tenant_id: str, model_id: str) -> str:
    return f"tenants/{tenant_id}/models/{model_id}/content"


def dataset_key(tenant_id: str, dataset_id: str) -> str:
    return f"tenants/{tenant_id}/datasets/{dataset_id}/content"


def job_prefix(tenant_id: str, job_id: str) -> str:
    """The folder of everything that any attempt of a job wrote."""
    return f"tenants/{tenant_id}/jobs/{job_id}"


def artifact_key(tenant_id: str, job_id: str, attempt: int, name: str) -> str:
    return f"{job_prefix(tenant_id, job_id)}/{attempt}/{name}"


def checkpoint_key(tenant_id: str, job_id: str, attempt: int, number: int) -> str:
    """No artifact's name begins like this, so a checkpoint never lies where an artifact does."""
    return artifact_key(tenant_id, job_id, attempt, f"_checkpoint-{number}")


def owner_of(key: str) -> Owner | None:
    """Whose object this is; None for a key that nothing above makes."""
    segments = key.split("/")
    if segments[0] != "tenants" or len(segments) < 4 or len(segments) != _DEPTHS.get(segments[2]):
        return None
    return Owner(segments[2], segments[3])
